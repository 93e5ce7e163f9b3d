"""The operators that kernels serve: what lowering makes and what a kernel builder is given; one file an operator."""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.tvm_kernels.operators.check_indices import CheckIndices
from subbyte.tvm_kernels.operators.elementwise import Elementwise
from subbyte.tvm_kernels.operators.epilogue import (
    Activate,
    Bias,
    Clip,
    Combine,
    Epilogue,
    Form,
    PRelu,
    RowScale,
    Scale,
    Step,
    ToBits,
    ToCodes,
    ToFloat,
)
from subbyte.tvm_kernels.operators.geometry import Conv2d, MatMul
from subbyte.tvm_kernels.operators.layer_norm import LayerNorm
from subbyte.tvm_kernels.operators.operands import (
    WORD,
    Bits,
    Codes,
    Float,
    FloatWeight,
    Storage,
    constant,
    weight_levels,
)
from subbyte.tvm_kernels.operators.operator import Facts, Fused, Operator, operators, run
from subbyte.tvm_kernels.operators.permute import Permute
from subbyte.tvm_kernels.operators.pool import Pool2d
from subbyte.tvm_kernels.operators.product import Binarized, Product
from subbyte.tvm_kernels.operators.quantize_tokens import QuantizeTokens
from subbyte.tvm_kernels.operators.softmax import Softmax
from subbyte.tvm_kernels.operators.unfold import Unfold

__all__ = [
    "WORD",
    "Activate",
    "Bias",
    "Binarized",
    "Bits",
    "CheckIndices",
    "Clip",
    "Codes",
    "Combine",
    "Conv2d",
    "Elementwise",
    "Epilogue",
    "Facts",
    "Float",
    "FloatWeight",
    "Form",
    "Fused",
    "LayerNorm",
    "MatMul",
    "Operator",
    "PRelu",
    "Permute",
    "Pool2d",
    "Product",
    "QuantizeTokens",
    "RowScale",
    "Scale",
    "Softmax",
    "Step",
    "Storage",
    "ToBits",
    "ToCodes",
    "ToFloat",
    "Unfold",
    "constant",
    "operators",
    "run",
    "weight_levels",
]

for _module in iter_modules(__path__):  # a file that nothing above names registers its operator too
    import_module(f"{__name__}.{_module.name}")
