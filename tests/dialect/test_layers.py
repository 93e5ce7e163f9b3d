"""What is recognised as a layer, and that a function which is registered is known everywhere at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import subbyte
from subbyte.dialect import function as register
from subbyte.dialect.exactness import RoundingTies
from subbyte.dialect.function import Body, Exactness, Function, Values
from subbyte.dialect.graph import view
from subbyte.dialect.layers import integer_sums, integer_valued, is_integer_product, layers
from subbyte.export import float_baseline, inspect, run_onnx
from subbyte.export.functions import append_functions
from subbyte.export.verify import inexact_nodes
from subbyte.tvm_kernels.compiler import compile

HEAD = '<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]> g (float[2, 4] x) => (%s)'
WEIGHTS = ", ".join(map(str, range(-6, 6)))
CONSTANTS = f"""<float s = {{2}}, float low = {{-8}}, float high = {{7}}, float[4, 3] w = {{{WEIGHTS}}},
    float[3] scale = {{0.5, 0.25, 2}}, float[3] bias = {{1, 2, 3}}>"""
LAYER = """
    codes = subbyte.Quantize(x, s, low, high)
    moved = Flatten(codes)
    acc = MatMul(moved, w)
    sum = Round(acc)
    scaled = Mul(scale, sum)
    y = Add(scaled, bias)
"""
X = np.array([[-3.6, -0.5, 0.0, 0.5], [1.5, 2.5, 40.0, -40.0]], np.float32)


def model_of(graph: str, outputs: str = "float[2, 3] y") -> onnx.ModelProto:
    return append_functions(onnx.parser.parse_model(HEAD % outputs + CONSTANTS + "{" + graph + "}"))


def test_the_parts_of_a_quantized_layer() -> None:
    graph = view(model_of(LAYER))
    (layer,) = layers(graph)
    assert layer.product.output[0] == "acc"
    assert layer.activations == ("codes",)
    assert layer.weight == "w"
    assert [(step.node.op_type, step.value, step.operand) for step in layer.epilogue] == [
        ("Round", "acc", None),
        ("Mul", "sum", "scale"),
        ("Add", "scaled", "bias"),
    ]
    assert (layer.scales, layer.bias) == (("scale",), ("bias",))
    assert integer_sums(graph) == ["acc"]
    assert [name for name in ("x", "codes", "moved", "w", "acc", "scale") if integer_valued(graph, name)] == [
        "codes",
        "moved",
        "w",
    ]


def test_a_float_layer_has_no_integer_sum() -> None:
    graph = view(model_of("acc = MatMul(x, w) scaled = Mul(acc, scale) y = Add(scaled, bias)"))
    (layer,) = layers(graph)
    assert layer.activations == ("x",)
    assert (layer.scales, layer.bias) == ((), ())
    assert [step.node.op_type for step in layer.epilogue] == ["Mul", "Add"]
    assert integer_sums(graph) == []


def test_the_scale_of_a_sum_of_low_bit_weights_needs_no_round() -> None:
    weights = (
        "shape = Constant <value = int64[2] {3, 4}> () levels = subbyte.DecodeNf4(packed, shape) t = Transpose(levels)"
    )
    body = f"{weights} acc = MatMul(x, t) scaled = Mul(acc, scale) y = Add(scaled, bias)"
    constants = CONSTANTS[:-1] + ", uint8[3, 2] packed = {1, 2, 3, 4, 5, 6}>"
    model = append_functions(onnx.parser.parse_model(HEAD % "float[2, 3] y" + constants + "{" + body + "}"))
    (layer,) = layers(view(model))
    assert (layer.weight, layer.scales, layer.bias) == ("levels", ("scale",), ("bias",))


def test_an_epilogue_ends_where_another_node_reads_the_value() -> None:
    graph = view(model_of(LAYER.replace("y = Add(scaled, bias)", "b = Add(scaled, bias) y = Add(b, scaled)")))
    (layer,) = layers(graph)
    assert [step.node.op_type for step in layer.epilogue] == ["Round", "Mul"]


def test_the_float_model_keeps_sums_that_are_outputs() -> None:
    model = model_of(LAYER, "float[2, 3] y, float[2, 3] sum")
    made = float_baseline(model)
    onnx.checker.check_model(made, full_check=True)
    found = run_onnx(made, X)
    np.testing.assert_allclose(found["sum"], 2 * X @ np.arange(-6, 6, dtype=np.float32).reshape(4, 3), rtol=1e-5)
    np.testing.assert_allclose(found["y"], found["sum"] * [0.5, 0.25, 2] + [1, 2, 3], rtol=1e-5)


CODES = "codes = subbyte.Quantize(x, s, low, high) "
WIDE_W = ", ".join(map(str, range(-6, 9)))
PADDED = f"""<float s = {{2}}, float low = {{-8}}, float high = {{7}}, int64[4] pads = {{0, 0, 0, 1}},
    float[5, 3] w = {{{WIDE_W}}}, float[2, 1] thirds = {{0.3, 0.3}}, float[2, 1] threes = {{3, 3}},
    float[3] c = {{1, 2, 3}}, float third = {{0.3}}, float three = {{3}}, float[3] half = {{0.5, 0.5, 0.5}}>"""
MOVED = [  # what widens the codes, and whether all its elements are integers
    ("both = Concat <axis = 1> (codes, threes)", True),
    ("both = Concat <axis = 1> (codes, thirds)", False),
    ("both = Concat <axis = 1> (thirds, codes)", False),
    ("f = Slice(x, start, end, end) both = Concat <axis = 1> (codes, f)", False),
    ("f = Slice(codes, start, end, end) both = Concat <axis = 1> (codes, f)", True),
    ("both = Pad(codes, pads)", True),
    ("both = Pad(codes, pads, three)", True),
    ("both = Pad(codes, pads, third)", False),
    ("t = Identity(third) both = Pad(codes, pads, t)", False),
    ("p = Pad(codes, pads, third) both = Identity(p)", False),
]


def padded(graph: str) -> onnx.ModelProto:
    constants = PADDED[:-1] + ", int64[1] start = {0}, int64[1] end = {1}>"
    return append_functions(onnx.parser.parse_model(HEAD % "float[2, 3] y" + constants + "{" + CODES + graph + "}"))


@pytest.mark.parametrize(("widen", "integers"), MOVED)
def test_data_movement_of_codes_and_floats_is_not_of_integers(widen: str, integers: bool) -> None:
    model = padded(f"{widen} acc = MatMul(both, w) y = Round(acc)")
    graph = view(model)
    assert integer_valued(graph, "both") == integers
    assert is_integer_product(graph, graph.producers["acc"]) == integers
    assert integer_sums(graph) == ["acc"] * integers
    assert (inexact_nodes(model) == []) == integers
    assert RoundingTies(model).facts["acc"].inexact != integers
    assert [layer.activation_format for layer in inspect(model).layers] == ["int4" if integers else "float32"]
    made = float_baseline(model)
    assert ("Round" in {node.op_type for node in made.graph.node}) != integers
    on_the_grid = np.array([[0, 1, -4, 3], [2.5, -2, 0, 0.5]], np.float32)  # nothing is lost by quantizing it
    np.testing.assert_array_equal(run_onnx(made, on_the_grid)["y"], run_onnx(model, on_the_grid)["y"])


@pytest.mark.parametrize(
    ("layer", "integers"),
    [
        ("acc = Gemm(wide, w, c)", True),
        ("acc = Gemm(wide, w, half)", False),
        ("acc = Gemm <alpha = 0.5> (wide, w)", False),
        ("acc = Gemm <beta = 0.5> (wide, w, c)", False),
    ],
)
def test_a_sum_is_of_integers_if_its_bias_and_factors_are(layer: str, integers: bool) -> None:
    facts = RoundingTies(padded(f"wide = Pad(codes, pads) {layer} y = Round(acc)")).facts["acc"]
    assert (facts.whole, facts.inexact) == (integers, not integers)


@pytest.mark.parametrize(("bias", "integers"), [(2.0, True), (0.5, False)])
def test_a_convolution_of_codes_with_a_float_bias_is_no_integer_sum(bias: float, integers: bool) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]> g (float[1, 1, 3] x) => (float[1, 1, 3] y)
        <float s = {{1}}, float low = {{-8}}, float high = {{7}}, float[1, 1, 1] w = {{3}}, float[1] b = {{{bias}}}>
        {{ {CODES} acc = Conv(codes, w, b) y = Round(acc) }}"""
    model = append_functions(onnx.parser.parse_model(text))
    graph = view(model)
    assert is_integer_product(graph, graph.producers["acc"]) == integers
    assert (inexact_nodes(model) == []) == integers
    assert RoundingTies(model).facts["acc"].inexact != integers
    x = np.array([[[-2, 0, 1]]], np.float32)
    np.testing.assert_array_equal(run_onnx(float_baseline(model), x)["y"], run_onnx(model, x)["y"])


def test_the_step_of_a_token_is_no_integer() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]> g (float[2, 4] x) => (float[2, 3] y)
        <float[4, 3] w = {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}, float[1, 3] v = {1, 2, 3}>
        { codes, step = subbyte.QuantizePerToken(x) acc = MatMul(codes, w) sum = Round(acc) scaled = Mul(sum, step)
          product = MatMul(step, v) y = Add(scaled, product) }"""
    model = append_functions(onnx.parser.parse_model(text))
    graph = view(model)
    assert [name for name in ("codes", "step") if integer_valued(graph, name)] == ["codes"]
    assert [is_integer_product(graph, graph.producers[name]) for name in ("acc", "product")] == [True, False]
    assert [layer.activation_format for layer in inspect(model).layers] == ["int8 per token", "float32"]
    assert len(inexact_nodes(model)) == 1
    facts = RoundingTies(model).facts
    assert [name for name in ("codes", "step", "acc", "sum", "scaled", "product") if facts[name].whole] == [
        "codes",
        "acc",
        "sum",
    ]
    assert [name for name in ("codes", "step", "scaled", "product", "y") if facts[name].inexact] == ["product", "y"]


def test_the_scale_of_dynamic_quantization_is_no_integer() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2, 4] x, float[4, 4] u) => (float[2, 4] y)
        { p = MatMul(x, u) codes, scale, zero = DynamicQuantizeLinear(p) y = DequantizeLinear(codes, scale, zero) }"""
    facts = RoundingTies(onnx.parser.parse_model(text)).facts
    assert [name for name in ("codes", "scale", "zero") if facts[name].whole] == ["codes", "zero"]
    assert [name for name in ("p", "codes", "scale", "zero") if facts[name].inexact] == ["p", "scale"]


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> Function:
    """A function of values, as its own file in dialect/ would register it."""
    monkeypatch.setattr(register, "_registry", dict(register._registry))
    return register.register(
        Function(
            name="Halve",
            version=1,
            summary="Half of x.",
            body="Halve (x) => (y) { half = Constant <value = float {0.5}> () y = Mul(x, half) }",
            role=Values(integers=False),
            shapes=lambda call: call.shapes[:1],
            reference=lambda x: (x * np.float32(0.5),),
            exactness=Exactness.BIT_EXACT,
            in_float=Body(),
            finite=True,
            macs=lambda call: 10,
            energy={"float32 multiply": 1},
            example=lambda random: (random.normal(size=3).astype(np.float32),),
        )
    )


def test_a_function_that_is_registered_is_known_everywhere(halved: Function, tmp_path: Path) -> None:
    model = model_of(LAYER.replace("y = Add", "b = Add") + "y = subbyte.Halve(b)")
    expected = run_onnx(model, X)["y"]
    assert inspect(model).warnings == ()
    assert inspect(model).macs == 2 * 3 * 4 + 10
    assert inexact_nodes(model) == []
    assert RoundingTies(model).allowances({"y": expected}) == {"y": 0.0}
    made = float_baseline(model)
    assert [f.name for f in made.functions] == ["Halve"]
    assert [node.op_type for node in made.graph.node] == ["Flatten", "MatMul", "Add", "Halve"]
    (note,) = compile(model, tmp_path / "m.subbyte", strict=True).notes
    assert note == "'y' (subbyte.Halve) is computed by its body in standard operators: it has no kernel"
    with subbyte.load(tmp_path / "m.subbyte") as session:
        np.testing.assert_array_equal(session.run(X), expected)


def test_codes_whose_limits_are_no_numbers_are_described_all_the_same() -> None:
    """Engines run such a file, so `inspect` describes it."""
    model = model_of(LAYER)
    (high,) = [tensor for tensor in model.graph.initializer if tensor.name == "high"]
    high.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "high"))
    (layer,) = inspect(model).layers
    assert layer.activation_format == "codes"
