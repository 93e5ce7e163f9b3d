"""The reason of each decline, on the smallest file that has it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from subbyte.export.functions import append_functions
from subbyte.tvm_kernels.explanation import Explanation
from subbyte.tvm_kernels.lowering import lower_graph

HEAD = """<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]>
g (%s) => (%s)
<float s = {8}, float low = {-128}, float high = {127}, float half = {0.5}, float step = {0.25}, float zero = {0},
 float one = {1}, float[1] t = {0.25}, float[8] steps = {1, 2, 1, 2, 1, 2, 1, 2}, int64[2] hw = {2, 3},
 int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, int64[8] channels = {0, 1, 0, 0, 0, 1, 0, 0}%s> { %s }"""
IMAGE = "float[1, 8, 6, 6] x"
CODES = "q = subbyte.Quantize(x, s, low, high) "
SIGNS = "b = subbyte.Binarize(x, zero) "
WEIGHTS = (
    *("float[4, 8, 3, 3] w", "float[4, 10, 3, 3] wide", "int8[4, 8, 3, 3] k", "uint8[4, 72] packed"),
    *("float[1, 8, 1, 1] by", "float[6] six", "float[3] three"),
)
CONVOLVED = "float[1, 4, 6, 6] y"
PACKED = "'b' is stored as bits"
BY_AXIS = "its activation has 8 steps, one for each index of an axis; handled: one step"


def model_of(inputs: str, output: str, nodes: str, *constants: str) -> onnx.ModelProto:
    """A model of the text's syntax; the constants, "float[4, 8] w" or "int8[3] w", are random, from -90 to 90."""
    made = onnx.parser.parse_model(HEAD % (inputs, output, "", nodes))
    rng = np.random.default_rng(0)
    for text in constants:
        info = onnx.parser.parse_graph(f"g ({text}) => (float[1] y) {{ }}").input[0]
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        values = rng.uniform(0 if dtype == np.uint8 else -90, 90, shape).astype(dtype)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    return append_functions(made)


def reasons(model: onnx.ModelProto) -> dict[str, set[str]]:
    """What each rule declined for."""
    explanation, found = Explanation(), dict[str, set[str]]()
    lower_graph(model, explanation=explanation)
    for fact in explanation.declined:
        found.setdefault(fact.rule, set()).add(fact.reason)
    return found


FLOATS = [
    (
        "layer norm",
        "its mean and variance are not over the last axis alone",
        ("float[2, 3, 4] x", "float[2, 3, 4] y"),
        "a = Constant <value = int64[1] {1}> () m = ReduceMean(x, a) c = Sub(x, m) n = Constant <value = float {2}> () "
        "p = Pow(c, n) v = ReduceMean(p, a) e = Add(v, t) r = Sqrt(e) y = Div(c, r)",
    ),
    (
        "layer norm",
        "it squares by an exponent that is not 2, or its epsilon is not a scalar",
        ("float[2, 3, 4] x", "float[2, 3, 4] y"),
        "a = Constant <value = int64[1] {2}> () m = ReduceMean(x, a) c = Sub(x, m) n = Constant <value = float {4}> () "
        "p = Pow(c, n) v = ReduceMean(p, a) e = Add(v, t) r = Sqrt(e) y = Div(c, r)",
    ),
    ("layer norm", "its axis is 1 of [2, 3, 4]; handled: the last", ("float[2, 3, 4] x", "float[2, 3, 4] y"), "NORM"),
    ("layer norm", "its bias is computed at run time", ("float[2, 4] x, float[4] bias", "float[2, 4] y"), "NORM_BIAS"),
    (
        "scale",
        "it broadcasts 'r' from [4] to [1, 4]",
        ("float[4] x", "float[1, 4] y"),
        "r = Relu(x) c = Constant <value = float[1, 1] {3}> () y = Mul(r, c)",
    ),
    (
        "bias",
        "its constant of shape [2, 8] broadcasts 'r' of [8]",
        ("float[8] x", "float[2, 8] y"),
        "r = Relu(x) y = Add(r, wide)",
    ),
    (
        "GELU",
        "its approximate is tanh; handled: none",
        ("float[4] x", "float[4] y"),
        'y = Gelu <approximate = "tanh"> (x)',
    ),
    ("clip", "its bounds are made at run time", ("float[4] x, float c", "float[4] y"), "y = Clip(x, c)"),
    (
        "PReLU",
        "its slope of shape [2, 8] is not by channel of [2, 8]",
        ("float[2, 8] x", "float[2, 8] y"),
        "y = PRelu(x, wide)",
    ),
    (
        "difference",
        "both its inputs are 'r'",
        ("float[4] x", "float[4] y"),
        "r = Relu(x) y = Sub(r, r)",
    ),
    ("negation", "its result is a scalar, without axes", ("float x", "float y"), "y = Neg(x)"),
    (
        "part",
        "its step is not 1",
        ("float[8, 16] x", "float[2, 16] y"),
        "r = Relu(x) b = Constant <value = int64[1] {0}> () e = Constant <value = int64[1] {4}> () "
        "n = Constant <value = int64[1] {2}> () p = Slice(r, b, e, b, n) y = Exp(p)",
    ),
    (
        "part",
        "its axis 1 is not the first longer than 1 of [8, 16], so that its elements are apart",
        ("float[8, 16] x", "float[8] y"),
        "r = Relu(x) i = Constant <value = int64 {2}> () p = Gather <axis = 1> (r, i) y = Exp(p)",
    ),
    (
        "part",
        "it begins at byte 24 of 'r'; handled: multiples of 64",
        ("float[4, 6] x", "float[6] y"),
        "r = Relu(x) i = Constant <value = int64 {1}> () p = Gather(r, i) y = Exp(p)",
    ),
]
NORMS = {
    "NORM": "y = LayerNormalization <axis = 1> (x, gamma)",
    "NORM_BIAS": "gamma4 = Constant <value = float[4] {1, 2, 3, 4}> () y = LayerNormalization(x, gamma4, bias)",
}


@pytest.mark.parametrize(("rule", "reason", "sides", "nodes"), FLOATS)
def test_floats(rule: str, reason: str, sides: tuple[str, str], nodes: str) -> None:
    assert reason in reasons(model_of(*sides, NORMS.get(nodes, nodes), "float[2, 8] wide", "float[3, 4] gamma"))[rule]


STEP = CODES + "d = Mul(q, step) "
OF_CODES = [
    # ---- moves, pools and bounds ----
    ("max pool of codes", PACKED, "float[1, 8, 5, 6] y", SIGNS + "z = MaxPool <kernel_shape = [2, 1]> (b) y = Neg(z)"),
    (
        "data movement",
        PACKED,
        "float[1, 8, 6, 6] y",
        SIGNS + "z = Transpose <perm = [0, 1, 3, 2]> (b) y = Neg(z)",
    ),
    (
        "data movement",
        "'o' is not stored as 'q' is: codes -128 to 127",
        "float[1, 16, 6, 6] y",
        CODES + "o = subbyte.Quantize(x, s, zero, high) y = Concat <axis = 1> (q, o)",
    ),
    (
        "data movement",
        "the constant 'half' is not of the codes -128 to 127",
        "float[1, 8, 8, 8] y",
        CODES + "y = Pad(q, pads, half)",
    ),
    (
        "step after data movement",
        "its second output is used",
        "float[1, 8, 5, 6] y, int64[1, 8, 5, 6] i",
        STEP + "y, i = MaxPool <kernel_shape = [2, 1]> (d)",
    ),
    (
        "step after data movement",
        "the step -0.25 is not positive",
        "float[1, 8, 5, 6] y",
        CODES + "n = Constant <value = float {-0.25}> () d = Mul(q, n) y = MaxPool <kernel_shape = [2, 1]> (d)",
    ),
    (
        "step after data movement",
        BY_AXIS,
        "float[8, 36] y",
        CODES + "d = Mul(q, by) o = Constant <value = int64[2] {8, 36}> () y = Reshape(d, o)",
    ),
    (
        "clipped levels",
        "its bounds -inf and 0.5 are not codes",
        "float[1, 8, 6, 6] y",
        CODES + "y = Clip(q, , half)",
    ),
    (
        "step after bounds",
        "no product with constant weights reads its codes",
        "float[1, 8, 6, 6] y",
        STEP + "y = Relu(d)",
    ),
    # ---- products ----
    ("padding", "'p' pads with 0.5; handled: 0", CONVOLVED, CODES + "p = Pad(q, pads, half) y = Conv(p, w)"),
    (
        "padding",
        "'p' pads batch or channels, or cuts off",
        "float[1, 4, 4, 4] y",
        CODES + "p = Pad(q, channels) y = Conv(p, wide)",
    ),
    (
        "padding",
        "its fill is made at run time",
        CONVOLVED,
        CODES + "r = ReduceMax <keepdims = 0> (x) p = Pad(q, pads, r) y = Conv(p, w)",
    ),
    (
        "padding",
        "'p' pads with 1, and the convolution itself with 0",
        "float[1, 4, 8, 8] y",
        SIGNS + "p = Pad(b, pads, one) y = Conv <pads = [1, 1, 1, 1]> (p, w)",
    ),
    ("step and scales", BY_AXIS, "float[1, 4, 4, 4] y", CODES + "d = Mul(q, by) y = Conv(d, v)"),
    (
        "sum of codes by windows",
        "its weights are not all 1, or it is not depthwise: not a sum over windows",
        "float[1, 4, 4, 4] y",
        CODES + "y = Conv(q, w)",
    ),
    (
        "float weights of few levels",
        "they are not integer levels times a scale for each output channel",
        "float[1, 4, 4, 4] y",
        CODES + "y = Conv(q, w)",
    ),
    # ---- sums and quantizers ----
    ("sum of codes", PACKED, "float[1, 8, 1, 1] y", SIGNS + "y = ReduceSum(b, hw)"),
    ("sum of codes", "its axes are left out, or made at run time", "float[1, 1, 1, 1] y", CODES + "y = ReduceSum(q)"),
    (
        "sum of codes",
        "it sums over axes [0, 2] of [1, 8, 6, 6]; handled: neighbours, and not the first",
        "float[1, 8, 1, 6] y",
        CODES + "a = Constant <value = int64[2] {0, 2}> () y = ReduceSum(q, a)",
    ),
    (
        "sum of codes",
        "it sums over axes [3] of [1, 8, 6, 6]; handled: the last one with all spatial axes",
        "float[1, 8, 6, 1] y",
        CODES + "a = Constant <value = int64[1] {3}> () y = ReduceSum(q, a)",
    ),
    (
        "same codes again",
        "it quantizes with another step, zero point or range than its input has",
        "float[1, 8, 6, 6] y",
        STEP + "y = subbyte.Quantize(d, s, low, high)",
    ),
    ("codes", "it has 6 steps; handled: one", "float[1, 8, 6, 6] y", "y = subbyte.Quantize(x, six, low, high)"),
    (
        "quantize before a view",
        "others read 'r', too",
        "float[8, 36] y, float[8, 36] e",
        "o = Constant <value = int64[2] {8, 36}> () r = Reshape(x, o) y = subbyte.Quantize(r, s, low, high) e = Exp(r)",
    ),
    # ---- weights ----
    (
        "scaled weight",
        "its factor of shape [3] is neither a scalar nor per output channel of [4, 8, 3, 3]",
        "float[1, 4, 4, 4] y",
        CODES + "c = Constant <value = int64[4] {4, 8, 3, 3}> () l = subbyte.DecodeInt8(packed, c) "
        "g = Mul(l, three) y = Conv(q, g)",
    ),
    (
        "scaled weight",
        "its weights have scales already",
        "float[1, 4, 4, 4] y",
        CODES + "g = Mul(v, half) y = Conv(q, g)",
    ),
]


@pytest.mark.parametrize(("rule", "reason", "output", "nodes"), OF_CODES)
def test_codes(rule: str, reason: str, output: str, nodes: str) -> None:
    found = reasons(model_of(IMAGE, output, "v = DequantizeLinear(k, half, ) " + nodes, *WEIGHTS))
    assert reason in found[rule]
