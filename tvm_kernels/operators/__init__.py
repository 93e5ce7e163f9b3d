"""The operators of kernels: lowering creates them, kernel builders take them; one file for each operator.

This module exports only what several modules of lowering and of kernels use. An operator with its own rewrite rule is
not listed here: its rule and its kernel rows import it from its file.
"""

from subbyte.tvm_kernels.operators.elementwise import Elementwise as Elementwise
from subbyte.tvm_kernels.operators.epilogue import Activate as Activate
from subbyte.tvm_kernels.operators.epilogue import Bias as Bias
from subbyte.tvm_kernels.operators.epilogue import Clip as Clip
from subbyte.tvm_kernels.operators.epilogue import Combine as Combine
from subbyte.tvm_kernels.operators.epilogue import Epilogue as Epilogue
from subbyte.tvm_kernels.operators.epilogue import PRelu as PRelu
from subbyte.tvm_kernels.operators.epilogue import RowScale as RowScale
from subbyte.tvm_kernels.operators.epilogue import Scale as Scale
from subbyte.tvm_kernels.operators.epilogue import Step as Step
from subbyte.tvm_kernels.operators.epilogue import Store as Store
from subbyte.tvm_kernels.operators.epilogue import ToBits as ToBits
from subbyte.tvm_kernels.operators.epilogue import ToCodes as ToCodes
from subbyte.tvm_kernels.operators.epilogue import ToFloat as ToFloat
from subbyte.tvm_kernels.operators.geometry import Conv2d as Conv2d
from subbyte.tvm_kernels.operators.geometry import MatMul as MatMul
from subbyte.tvm_kernels.operators.operands import WORD as WORD
from subbyte.tvm_kernels.operators.operands import Bits as Bits
from subbyte.tvm_kernels.operators.operands import Codes as Codes
from subbyte.tvm_kernels.operators.operands import Float as Float
from subbyte.tvm_kernels.operators.operands import FloatWeight as FloatWeight
from subbyte.tvm_kernels.operators.operands import Storage as Storage
from subbyte.tvm_kernels.operators.operands import constant as constant
from subbyte.tvm_kernels.operators.operator import Example as Example
from subbyte.tvm_kernels.operators.operator import Facts as Facts
from subbyte.tvm_kernels.operators.operator import Fused as Fused
from subbyte.tvm_kernels.operators.operator import Operator as Operator
from subbyte.tvm_kernels.operators.operator import operators as operators
from subbyte.tvm_kernels.operators.operator import run as run
from subbyte.tvm_kernels.operators.pool import Pool2d as Pool2d
from subbyte.tvm_kernels.operators.product import Binarized as Binarized
from subbyte.tvm_kernels.operators.product import Product as Product
