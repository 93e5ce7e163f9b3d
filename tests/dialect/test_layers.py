"""What is recognised as a layer, and that a function which is registered is known everywhere at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import subbyte
from subbyte.dialect import function as register
from subbyte.dialect.function import Body, Exactness, Function, Values
from subbyte.dialect.graph import view
from subbyte.dialect.layers import integer_sums, integer_valued, layers
from subbyte.exactness import RoundingTies
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
    assert layer.activation is not None
    assert layer.activation.op_type == "Quantize"
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
    assert layer.activation is None
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
