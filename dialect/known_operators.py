"""The operators that files may contain besides dialect functions: those of ONNX, and some of other domains.

Products have a row in macs.py; all other operators are listed in NO_PRODUCTS. An operator that is in neither is
refused, because its number of multiply-accumulates is unknown. Operators of other domains are named "domain.name".
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from subbyte.dialect.function_calls import STANDARD_DOMAINS
from subbyte.dialect.macs import MACS
from subbyte.dialect.names import DOMAIN

_NO_PRODUCTS = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Bernoulli BitCast BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress
    Concat ConcatFromSequence Constant ConstantOfShape Cos Cosh CumProd CumSum DepthToSpace DequantizeLinear Det Div
    Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow
    HannWindow HardSigmoid HardSwish Hardmax Identity If ImageDecoder InstanceNormalization IsInf IsNaN LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool Max MaxPool MaxRoiPool
    MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg NegativeLogLikelihoodLoss
    NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement OptionalHasElement Or PRelu Pad Pow QuantizeLinear
    RMSNormalization RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Relu
    Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scan Scatter ScatterElements ScatterND Selu SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap Shape Shrink Sigmoid Sign
    Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt
    Squeeze StringConcat StringNormalizer StringSplit Sub Sum SwiGLU Swish Tan Tanh TensorScatter TfIdfVectorizer
    ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
    com.microsoft.Gelu com.microsoft.QuantizeLinear com.microsoft.DequantizeLinear com.microsoft.GatherBlockQuantized
    qonnx.custom_op.general.Quant qonnx.custom_op.general.IntQuant qonnx.custom_op.general.BipolarQuant
    qonnx.custom_op.general.Trunc
"""
NO_PRODUCTS = frozenset(_NO_PRODUCTS.split())

# Quantizers, and operators on codes: which inputs are values. The others are scales, zero points and limits.
QUANTIZERS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
    "DynamicQuantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3, 8),
    "com.microsoft.QuantizeLinear": (0,),
    "com.microsoft.DequantizeLinear": (0,),
    "com.microsoft.MatMulNBits": (0, 1, 5),
    "com.microsoft.GatherBlockQuantized": (0, 1),
    "qonnx.custom_op.general.Quant": (0,),
    "qonnx.custom_op.general.IntQuant": (0,),
    "qonnx.custom_op.general.BipolarQuant": (0,),
    "qonnx.custom_op.general.Trunc": (0,),
}


# Those whose result is rounded.
ROUNDING = frozenset(name for name, values in QUANTIZERS.items() if values == (0,) and "Dequantize" not in name)

QONNX = "qonnx.custom_op.general"
# Of other domains: float32 of the shape of the first input. ONNX infers no shape of them.
SHAPE_OF_INPUT = frozenset(
    ["com.microsoft.Gelu", *(f"{QONNX}.{op}" for op in ("Quant", "IntQuant", "BipolarQuant", "Trunc"))]
)


def full_name(node: onnx.NodeProto) -> str:
    """The name of an operator, with its domain unless that is the standard one."""
    return str(node.op_type) if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def unknown_nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes outside domain `subbyte` whose operator is neither in MACS nor in NO_PRODUCTS."""
    others = (node for node in nodes if node.domain != DOMAIN)
    return [node for node in others if full_name(node) not in MACS and full_name(node) not in NO_PRODUCTS]
