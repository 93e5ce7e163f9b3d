"""Constant folding: nodes whose inputs are all known are computed, by ONNX's evaluator, while the file is read.

An operator that is in none of the lists stays a node. What a file may have computed is bounded, all nodes together, in
bytes and in steps, which say how long it takes; both are known before a node is computed. To add an operator, add it to
the list of how the evaluator computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.reference

from subbyte.dialect.walk import label_of
from subbyte.errors import ModelError
from subbyte.files import limits
from subbyte.tvm_kernels.graph import Graph, Value

# An element that NumPy computes with others takes as long as 64 multiply-adds of a float product; one by which Python
# goes, as long as 256 of these.
ELEMENT, IN_PYTHON = 64, 64 * 256
_BY_ARRAY = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitCast BitShift BitwiseAnd
    BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Cos Cosh CumProd
    CumSum DepthToSpace Div Dropout DynamicQuantizeLinear Elu Equal Exp Expand EyeLike Flatten Floor Gather
    GatherElements Gelu GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization Max Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape ReverseSequence Round Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Where Xor
"""
_BY_ELEMENT = """
    BlackmanWindow CenterCropPad Compress Erf GatherND HammingWindow HannWindow LayerNormalization NonZero Scatter
    ScatterElements ScatterND Unique
"""

Steps = Callable[[Sequence[Value], Sequence[Value], dict[str, Any]], int]  # of inputs, outputs and attributes


def _array(inputs: Sequence[Value], outputs: Sequence[Value], attributes: dict[str, Any]) -> int:
    return ELEMENT * sum(value.size for value in (*inputs, *outputs))


def _python(inputs: Sequence[Value], outputs: Sequence[Value], attributes: dict[str, Any]) -> int:
    return IN_PYTHON * sum(value.size for value in (*inputs, *outputs))


def _product(inputs: Sequence[Value], outputs: Sequence[Value], attributes: dict[str, Any]) -> int:
    depth = inputs[0].shape[-2 if attributes.get("transA") else -1]
    by_blas = outputs[0].dtype in ("float32", "float64")
    return (1 if by_blas else ELEMENT) * outputs[0].size * depth + _array(inputs, outputs, attributes)


FOLDED: dict[str, Steps] = {
    **dict.fromkeys(_BY_ARRAY.split(), _array),
    **dict.fromkeys(_BY_ELEMENT.split(), _python),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger"), _product),
}
_OF_SHAPES = ("Shape", "Size", "EyeLike")  # what needs no values


def fold(graph: Graph, proto: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
    """Compute a node of the graph whose inputs are all known; whether that was so.

    Raises ModelError for what cannot be computed, and for more than a file may ask for.
    """
    inputs = [graph.values[name] for name in proto.input if name]
    outputs = [graph.values[name] for name in proto.output if name]
    if proto.op_type not in FOLDED or any(np.dtype(value.dtype).kind in "OSU" for value in (*inputs, *outputs)):
        return False
    if proto.op_type not in _OF_SHAPES and any(value.data is None for value in inputs):
        return False
    if proto.op_type == "Shape":
        first, last = attributes.get("start", 0), attributes.get("end", len(inputs[0].shape))
        outputs[0].data = np.array(inputs[0].shape[first:last], np.int64)
        return True
    if proto.op_type == "Size":
        outputs[0].data = np.array(inputs[0].size, np.int64)
        return True
    label = label_of(proto)
    _spend(graph, label, proto.op_type, inputs, outputs, attributes)
    by_shape = proto.op_type == "EyeLike"
    feeds = {value.name: np.zeros(value.shape, value.dtype) if by_shape else value.data for value in inputs}
    evaluator = onnx.reference.ReferenceEvaluator(proto, opsets={"": graph.opset})
    try:
        results = evaluator.run(None, feeds)
    except Exception as error:  # the evaluator raises what its operators raise
        raise ModelError(f"node '{label}' cannot be computed from its constants: {error}") from error
    for value, result in zip(outputs, results, strict=False):
        value.data = np.asarray(result)
    return True


def _spend(
    graph: Graph,
    label: str,
    op: str,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    attributes: dict[str, Any],
) -> None:
    graph.folded_bytes += sum(prod(value.shape) * np.dtype(value.dtype).itemsize for value in outputs)
    graph.folded_steps += FOLDED[op](inputs, outputs, attributes)
    for what, spent, most in (
        ("bytes", graph.folded_bytes, limits.FOLDED_BYTES),
        ("steps", graph.folded_steps, limits.FOLDED_STEPS),
    ):
        if spent > most:
            shapes = ", ".join(str(list(value.shape)) for value in inputs)
            raise ModelError(
                f"node '{label}' ({op} of constants {shapes}): what the file has computed of its constants takes "
                f"{spent} {what} up to here, at most {most} are accepted. Store its result in the file in its place"
            )
