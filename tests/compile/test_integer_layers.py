"""Layers of QDQ files on integer kernels, whatever moves of data and factors stand in between; the others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdq_file import File, assert_close, some_inputs
from run_plan import onnxruntime_outputs

import subbyte
from subbyte.errors import CompileError
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.rewrites.float_levels import low_bit

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("bias", ["constant", "run time", "none"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0), (-1.5, 0.0)])
@pytest.mark.parametrize("turned", [0, 1], ids=["A", "A transposed"])
def test_gemm_with_factors_is_an_integer_product(alpha: float, beta: float, turned: int, bias: str) -> None:
    f = File(*((64, 16) if turned else (16, 64)))
    x = f.quantized("x", zero=10)
    c = {"constant": f.constant(RNG.uniform(-1, 1, 24)), "none": ""}.get(bias) or ""
    if bias == "run time":
        c = f.node("ReduceMean", "x", keepdims=1)
    y = f.node("Gemm", x, f.weight(24, 64), *([c] if c else []), alpha=alpha, beta=beta, transA=turned, transB=1)
    assert_close(f.model(y), "QuantizedProduct")


def channels_first(f: File, x: str) -> str:
    return f.node("Transpose", x, perm=[0, 3, 1, 2])


def ints(f: File, *values: int) -> str:
    return f.constant(values, np.int64)


DATA_MOVEMENT = {
    "Transpose": channels_first,
    "Reshape": lambda f, x: f.node("Reshape", x, ints(f, 1, 16, 8, 8)),
    "Slice": lambda f, x: f.node("Slice", channels_first(f, x), ints(f, 2), ints(f, 8), ints(f, 3)),
    "Pad": lambda f, x: f.node("Pad", channels_first(f, x), ints(f, 0, 0, 1, 2, 0, 0, 2, 1)),
    "reflect": lambda f, x: f.node("Pad", channels_first(f, x), ints(f, 0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    "MaxPool": lambda f, x: f.node("MaxPool", channels_first(f, x), kernel_shape=[2, 2], strides=[2, 2]),
    "Concat": lambda f, x: f.node("Concat", *[channels_first(f, x)] * 2, axis=2),
}


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, -7), (np.uint8, 100)])
@pytest.mark.parametrize("move", DATA_MOVEMENT)
def test_layers_behind_moves_of_data_are_integer_products(move: str, dtype: Any, zero: int) -> None:
    f = File(1, 8, 8, 16)
    x = DATA_MOVEMENT[move](f, f.quantized("x", zero=zero, dtype=dtype))
    assert_close(f.model(f.node("Conv", x, f.weight(8, 16, 3, 3), pads=[1] * 4)), "QuantizedProduct")


@pytest.mark.parametrize(("dtype", "name"), [(np.int8, "int8"), (np.uint8, "uint8")])
@pytest.mark.parametrize("move", ["reflect", "Concat"])
def test_calls_that_move_codes_are_reported_as_such(move: str, dtype: Any, name: str) -> None:
    f = File(1, 8, 8, 16)
    x = DATA_MOVEMENT[move](f, f.quantized("x", dtype=dtype))
    plan = lower(f.model(f.node("Conv", x, f.weight(8, 16, 3, 3))), frozenset())
    moves = [call.activation for call in plan.calls if call.kind == "relax" and call.outputs[0].dtype == "uint8"]
    assert moves
    assert set(moves) == {name}


def clip(low: float | None, high: float | None) -> Any:
    return lambda f, x: f.node("Clip", x, *["" if bound is None else f.constant(bound) for bound in (low, high)])


BETWEEN = {
    "Relu": lambda f, x: f.node("Relu", x),
    "Clip to levels": clip(-0.25, 1.5),
    "Clip to nothing": clip(-100, 100),
    "Relu6 beyond every code": clip(0, 6),
    "Clip from above": clip(None, 0.75),
    "Clip, Transpose, Relu": lambda f, x: f.node("Relu", f.node("Transpose", clip(-0.5, 0.5)(f, x), perm=[0, 1, 3, 2])),
    "Pad with a level": lambda f, x: f.node("Pad", x, ints(f, 0, 0, 1, 2, 0, 0, 2, 1), f.constant(-0.5)),
    "Relu, MaxPool": lambda f, x: f.node("MaxPool", f.node("Relu", x), kernel_shape=[2, 2]),
}
GLOBAL = {
    "GlobalMaxPool": lambda f, x: f.node("GlobalMaxPool", x),
    "ReduceMax": lambda f, x: f.node("ReduceMax", x, axes=[2, 3]),
    "ReduceMax to a matrix": lambda f, x: f.node("ReduceMax", x, axes=[2, 3], keepdims=0),
}


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, -7), (np.uint8, 100)])
@pytest.mark.parametrize("between", [*BETWEEN, *GLOBAL])
def test_layers_behind_bounds_and_largest_codes_are_integer_products(between: str, dtype: Any, zero: int) -> None:
    f = File(1, 16, 8, 8)
    x = {**BETWEEN, **GLOBAL}[between](f, f.quantized("x", 1 / 64, zero, dtype))
    if between == "ReduceMax to a matrix":
        y = f.node("Gemm", x, f.weight(8, 16), transB=1)
    else:
        y = f.node("Conv", x, f.weight(8, 16, *([1, 1] if between in GLOBAL else [3, 3])))
    assert_close(f.model(y), "QuantizedProduct")


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 3.5), (-3, 7), (300, 400), (-400, -300), (5, -5), (None, 0.25), (-1e9, 1e9)]
)
def test_levels_within_bounds_that_are_no_levels_stay_right(low: float | None, high: float) -> None:
    f = File(4, 16)
    q = f.node("QuantizeLinear", "x", f.constant(1 / 64), f.constant(3, np.int8))
    model = f.model(clip(low, high)(f, f.node("Cast", q, to=onnx.TensorProto.FLOAT)))
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_array_equal(interpret(lower_graph(model), inputs)[name], wanted)


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -7), (np.uint8, 100)])
def test_bounds_and_largest_codes_are_compiled(dtype: Any, zero: int, tmp_path: Path) -> None:
    f = File(1, 16, 8, 8)
    x = f.quantized("x", 1 / 64, zero, dtype)
    for between in ("Clip to levels", "Pad with a level", "Relu, MaxPool"):
        x = BETWEEN[between](f, x)
    pooled = f.node("Conv", f.node("GlobalMaxPool", x), f.weight(8, 16, 1, 1))
    model = f.model(f.node("Add", f.node("Conv", x, f.weight(8, 16, 3, 3)), pooled))
    inputs = some_inputs(model)
    subbyte.compile(model, tmp_path / "m.subbyte", golden_inputs=[inputs["x"]], strict=True)
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        got = session.run(inputs["x"])
    (wanted,) = onnxruntime_outputs(model, inputs).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())


NOT_ON_CODES = {
    "Clip": clip(-0.3, 0.7),  # no multiples of 1/64
    "Max": lambda f, x: f.node("Max", x, f.constant(0.7)),
    "Abs": lambda f, x: f.node("Abs", x),
    "Resize": lambda f, x: f.node("Resize", x, "", f.constant([1, 1, 2, 2])),
}


@pytest.mark.parametrize("weights", ["int8", "float32"])
@pytest.mark.parametrize("between", NOT_ON_CODES)
def test_what_stands_between_codes_and_a_product_of_floats_is_named(between: str, weights: str) -> None:
    f = File(1, 6, 8, 8)
    x = NOT_ON_CODES[between](f, f.quantized("x", 1 / 64))
    w = f.weight(8, 6, 3, 3) if weights == "int8" else f.constant(RNG.standard_normal((8, 6, 3, 3)))
    (product,) = assert_close(f.model(f.node("Conv", x, w)), "FloatProduct", strict=False)
    if weights == "int8":
        assert f"is quantized, but '{x}' ({between}) in between is computed in float32" in product.fallback
        assert ("not multiples of the step 0.015625" in product.fallback) == (between == "Clip")
    else:
        assert product.fallback == f"its activation '{x}' is quantized, but its weights are float32"


NO_CODES = {
    "AveragePool": lambda f, x: f.node("AveragePool", x, kernel_shape=[2, 2]),
    "GlobalAveragePool": lambda f, x: f.node("GlobalAveragePool", x),
    "LeakyRelu": lambda f, x: f.node("LeakyRelu", x),
    "Resize": lambda f, x: f.node("Resize", x, "", f.constant([1, 1, 2, 2]), mode="linear"),
}


@pytest.mark.parametrize("weights", ["int8", "float32"])
@pytest.mark.parametrize("between", NO_CODES)
def test_what_is_computed_of_codes_has_no_quantizer(between: str, weights: str) -> None:
    f = File(1, 6, 8, 8)
    x = NO_CODES[between](f, f.quantized("x", 1 / 64))
    w = f.weight(8, 6, 1, 1) if weights == "int8" else f.constant(RNG.standard_normal((8, 6, 1, 1)))
    (product,) = assert_close(f.model(f.node("Conv", x, w)), "FloatProduct")
    assert (product.operator.weight is not None) == (weights == "int8")


def max_pool(f: File, x: str, **attributes: Any) -> str:
    return f.node("MaxPool", x, kernel_shape=[3, 3], **attributes)


# What keeps codes from reaching a product, and what its report says of it.
WHY_NOT = {
    "fill": (
        lambda f, x: f.node("Pad", x, ints(f, 0, 0, 1, 1, 0, 0, 1, 1), f.constant(0.1)),
        "but 'Pad2' (Pad) in between is computed in float32: its fill 0.1 is not a level times the step 0.03",
    ),
    "in front of a pool": (
        lambda f, x: max_pool(f, f.node("Pad", x, ints(f, 0, 0, 1, 1, 0, 0, 1, 1), f.constant(-np.inf))),
        "but 'Pad2' (Pad) in between is computed in float32: its fill -inf is not a level times the step 0.03",
    ),
    "parts": (
        lambda f, x: f.node("Concat", x, "x", axis=2),
        "but 'Concat2' (Concat) in between is computed in float32: not all that it joins is quantized with one step "
        "and one zero point",
    ),
    "windows": (
        lambda f, x: max_pool(f, x, strides=[2, 2], ceil_mode=1),
        "but 'MaxPool2' (MaxPool) in between is computed in float32: kernels have windows over 1 or 2 axes, all of "
        "which are inside the padded input",
    ),
}


@pytest.mark.parametrize("case", WHY_NOT)
def test_what_keeps_codes_from_a_product_is_said(case: str) -> None:
    between, reason = WHY_NOT[case]
    f = File(1, 6, 8, 8)
    x = between(f, f.quantized("x", zero=7))
    (product,) = assert_close(f.model(f.node("Conv", x, f.weight(8, 6, 1, 1))), "FloatProduct", strict=False)
    assert product.fallback == f"weights are int8, but its activation '{x}' is quantized, {reason}"


def test_activations_of_16_bits_are_said() -> None:
    f = File(1, 6, 8, 8)
    x = f.quantized("x", dtype=np.int16)
    model = f.model(f.node("Conv", x, f.weight(8, 6, 1, 1)))
    model.opset_import[0].version, model.ir_version = 21, 10
    (product,) = assert_close(model, "FloatProduct", strict=False)
    lacks = "is quantized to 16 bits, and kernels take at most 8"
    assert product.fallback == f"weights are int8, but its activation '{x}' {lacks}"


def test_float_levels_whose_sums_are_beyond_int32_say_so() -> None:
    f = File(1, 70_000)
    w = RNG.integers(-127, 128, (70_000, 4)).astype(np.float32) * np.float32(0.01)
    (product,) = assert_close(f.model(f.node("MatMul", f.quantized("x"), f.constant(w))), "FloatProduct", strict=False)
    assert product.fallback.endswith("but sums of 70000 products of 8 bits and int8 are beyond int32")


@given(
    st.lists(st.sampled_from([*BETWEEN, *NOT_ON_CODES]), min_size=1, max_size=4),
    st.sampled_from([(np.int8, 0), (np.int8, -7), (np.uint8, 0), (np.uint8, 100)]),
    st.sampled_from([1 / 64, 0.03, 0.011]),
)
def test_any_order_of_what_stands_between_keeps_the_numbers(names: list[str], kind: Any, step: float) -> None:
    """Every value on the way is onnxruntime's bit for bit, the product within the order of its sums."""
    f = File(1, 6, 8, 8)
    x = f.quantized("x", step, kind[1], kind[0])
    for name in names:
        x = {**BETWEEN, **NOT_ON_CODES}[name](f, x)
    y = f.node("Conv", x, f.weight(4, 6, 1, 1))
    model = f.model(y)
    model.graph.output.append(helper.make_empty_tensor_value_info(x))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    model.graph.output[1].CopyFrom(next(value for value in inferred if value.name == x))
    inputs = some_inputs(model)
    wanted, got = onnxruntime_outputs(model, inputs), interpret(lower_graph(model), inputs)
    np.testing.assert_array_equal(got[x], wanted[x])
    np.testing.assert_allclose(got[y], wanted[y], rtol=1e-5, atol=2e-6 * np.abs(wanted[y]).max())


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integer_inputs_are_codes(dtype: Any, moved: bool) -> None:
    f = File(1, 8, 8, 16, dtype=dtype)
    x = (
        f.node("Transpose", "x", perm=[0, 3, 1, 2])
        if moved
        else f.node("Reshape", "x", f.constant([1, 16, 8, 8], np.int64))
    )
    x = f.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2]) if moved else x
    x = f.dequantized(x, 0.03, 11, dtype)
    assert_close(f.model(f.node("Conv", x, f.weight(8, 16, 3, 3))), "QuantizedProduct")


def test_values_joined_of_several_steps_stay_right_and_are_named() -> None:
    f = File(4, 16)
    x = f.node("Concat", f.quantized("x", 0.03), f.quantized("x", 0.05, 20), axis=1)
    model = f.model(f.node("Gemm", x, f.weight(8, 32), transB=1))
    (product,) = assert_close(model, "FloatProduct", strict=False)
    assert "not all that it joins is quantized with one step and one zero point" in product.fallback
    with pytest.raises(CompileError, match="not all that it joins is quantized with one step"):
        lower_graph(model, strict=True)


@pytest.mark.parametrize("axis", [1, 3])
def test_activations_quantized_by_axis_stay_right_and_are_named(axis: int) -> None:
    f = File(1, 6, 8, 5)
    n = (1, 6, 8, 5)[axis]
    step, zero = f.constant(RNG.uniform(0.01, 0.04, n)), f.constant(RNG.integers(-9, 9, n), np.int8)
    q = f.node("QuantizeLinear", "x", step, zero, axis=axis)
    model = f.model(f.node("Conv", f.node("DequantizeLinear", q, step, zero, axis=axis), f.weight(8, 6, 3, 3)))
    (product,) = assert_close(model, "FloatProduct", strict=False)
    assert "quantized by axis" in product.fallback


def test_codes_in_a_product_of_floats_are_named() -> None:
    for right in ("float weights", "run time", "no kernel"):
        f = File(1, 6, 8, 8)
        x = f.quantized("x")
        if right == "no kernel":
            y = f.node("ConvTranspose", x, f.weight(6, 4, 3, 3))
        else:
            y = f.node("MatMul", x, "x" if right == "run time" else f.constant(RNG.standard_normal((8, 8))))
        with pytest.raises(CompileError, match="1 layer would run in float") as error:
            lower_graph(f.model(y), strict=True)
        assert {"float weights": "weights are float32", "run time": "at run time", "no kernel": "weights are int8"}[
            right
        ] in str(error.value)


def test_a_product_that_tvm_fuses_with_what_follows_is_still_named() -> None:
    f = File(4, 600, dtype=np.uint8)
    product = f.node("MatMulInteger", "x", f.constant(RNG.integers(-128, 128, (600, 5)), np.int8))
    scaled = f.node("Mul", f.node("Cast", product, to=onnx.TensorProto.FLOAT), f.constant(0.1))
    model = f.model(f.node("Exp", scaled))
    reasons = [call.fallback for call in lower(model, frozenset()).calls if call.fallback]
    assert len(reasons) == 1
    assert f"'{product}': MatMulInteger goes through TVM" in reasons[0]


# ---- float weights of few levels ----


KINDS_OF_LEVELS = {
    "binary": [-1, 1],
    "ternary": [-1, 0, 1],
    "int2": range(-2, 2),
    "int4": range(-8, 8),
    "pow2_4": [0, *(sign * 2**e for sign in (-1, 1) for e in range(7))],
    "int5": range(-11, 5),  # uint4 with zero point 11
    "int8": range(-127, 128),
}


def few(kind: str, *shape: int) -> Any:
    """Float weights, levels times a scale by output channel (the first axis) or for all; the largest are in each."""
    name, _, by = kind.partition(" by ")
    row = np.resize(sorted(KINDS_OF_LEVELS[name], key=lambda level: -abs(level)), np.prod(shape[1:]))
    levels = RNG.permuted(np.tile(row, (shape[0], 1)), axis=1).reshape(shape)
    scale = RNG.uniform(0.01, 0.3, 1 if by == "tensor" else shape[0]).astype(np.float32)
    return levels.astype(np.float32) * scale.reshape(-1, *([1] * (len(shape) - 1)))


@pytest.mark.parametrize("by", ["channel", "tensor"])
@pytest.mark.parametrize("kind", KINDS_OF_LEVELS)
@pytest.mark.parametrize("product", ["Conv", "depthwise", "MatMul", "Gemm"])
def test_float_weights_of_few_levels_are_low_bit_weights(product: str, kind: str, by: str) -> None:
    f = File(*((1, 6, 9, 9) if product in ("Conv", "depthwise") else (5, 32)))
    x = f.quantized("x", zero=5)
    if product == "Conv":
        w = few(f"{kind} by {by}", 8, 6, 7, 7)
        y = f.node("Conv", x, f.constant(w))
    elif product == "depthwise":
        w = few(f"{kind} by {by}", 6, 1, 7, 7)
        y = f.node("Conv", x, f.constant(w), group=6)
    elif product == "Gemm":
        w = few(f"{kind} by {by}", 8, 32)
        y = f.node("Gemm", x, f.constant(w), f.constant(RNG.uniform(-1, 1, 8)), transB=1)
    else:
        w = few(f"{kind} by {by}", 8, 32)
        y = f.node("MatMul", x, f.constant(w.T.copy()))
    (node,) = assert_close(f.model(y), "QuantizedProduct")
    if kind != "int8" or product == "Conv":  # fewer elements than levels of 8 bits leave some out
        assert node.operator.right.format.name == kind


@given(st.data())
def test_levels_of_float_weights_give_the_weights_bit_for_bit(data: st.DataObject) -> None:
    rows, depth, axis = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 40)), data.draw(st.integers(0, 1))
    most = data.draw(st.sampled_from([1, 2, 3, 7, 8, 15, 64, 100, 127]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = np.exp(rng.uniform(-20, 20, (rows, 1))).astype(np.float32)
    w = rng.integers(-most, most + 1, (rows, depth)).astype(np.float32) * scale
    w = w if axis == 0 else np.ascontiguousarray(w.T)
    found = low_bit(w, axis)
    if not w.any():
        assert found is None
        return
    assert found is not None
    np.testing.assert_array_equal(np.moveaxis(found.dequantize(), 0, axis), w)
    assert found.largest <= most


def test_one_element_off_by_its_last_bit_is_no_level() -> None:
    for kind in KINDS_OF_LEVELS:
        w = few(f"{kind} by channel", 8, 32)
        place = np.abs(w[3]).argmax()
        w[3, place] = np.nextafter(w[3, place], np.float32(9))
        assert low_bit(w, 0) is None


def test_other_float_weights_stay_float() -> None:
    """One element off by its last bit, an average: named as floats behind codes."""
    off = few("ternary by channel", 8, 32)
    off[off != 0] = np.concatenate([np.nextafter(off[off != 0][:1], np.float32(9)), off[off != 0][1:]])
    for weights in (off, np.full((8, 32), 0.25)):
        f = File(5, 32)
        model = f.model(f.node("Gemm", f.quantized("x"), f.constant(weights), transB=1))
        (node,) = assert_close(model, "FloatProduct", strict=False)
        assert node.fallback == f"its activation '{node.inputs[0]}' is quantized, but its weights are float32"


@pytest.mark.parametrize("kind", KINDS_OF_LEVELS)
@pytest.mark.parametrize("product", ["Conv", "Gemm", "ConvTranspose", "MatMul of 3 axes", "LSTM"])
def test_float_weights_of_few_levels_behind_floats_are_named(product: str, kind: str) -> None:
    f = File(*((1, 6, 9, 9) if product.startswith("Conv") else (1, 5, 64)))
    if product.startswith("Conv"):
        f.node(product, "x", f.constant(few(f"{kind} by tensor", 6, 6, 7, 7)))
    elif product == "Gemm":
        f.node("Gemm", f.node("Reshape", "x", ints(f, 5, 64)), f.constant(few(f"{kind} by channel", 32, 64)), transB=1)
    elif product == "LSTM":
        w, r = f.constant(few(f"{kind} by tensor", 1, 64, 64)), f.constant(few(f"{kind} by tensor", 1, 64, 16))
        f.node("LSTM", "x", w, r, hidden_size=16)
    else:
        f.node("MatMul", "x", f.constant(few(f"{kind} by tensor", 1, 64, 64)))
    model = f.model(f.nodes[-1].output[0])
    graph = lower_graph(model)
    reasons = [node.fallback for node in graph.order() if node.fallback]
    assert len(reasons) == 1
    assert reasons[0].startswith(f"weights are {kind} (")
    assert ("'x' has no quantizer" in reasons[0]) == (product == "Conv")
    with pytest.raises(CompileError, match="1 layer would run in float"):
        lower_graph(model, strict=True)


@pytest.mark.parametrize("sign", ["Where", "Sign"])
def test_signs_in_float_are_named_as_what_they_are(sign: str) -> None:
    f = File(5, 64)
    if sign == "Where":
        y = f.node("Where", f.node("Less", "x", f.constant(0.0)), f.constant(-1.0), f.constant(1.0))
    else:
        y = f.node("Sign", "x")
    f.node("Gemm", f.node("Identity", y), f.constant(few("binary by channel", 32, 64)), transB=1)
    with pytest.raises(
        CompileError, match=rf"is -1 or .1 in float32, computed by '{y}' \({sign}\), and binary values are"
    ):
        lower_graph(f.model(f.nodes[-1].output[0]), strict=True)


SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
BLUR = np.outer([1, 2, 1], [1, 2, 1]) / 16


@pytest.mark.parametrize(
    ("w", "group"),
    [
        (np.stack([SOBEL, SOBEL.T])[:, None], 1),
        (np.broadcast_to(BLUR, (64, 1, 3, 3)), 64),
        (np.ones((64, 1, 3, 3)) / 9, 64),
        (np.eye(64)[RNG.permutation(64)][:, :, None, None], 1),  # channels in another order
        (np.kron(np.eye(8), np.ones((8, 8)))[:, :, None, None], 1),  # sums of groups
        (np.zeros((16, 16, 3, 3)), 1),
        (RNG.standard_normal((16, 16, 3, 3)), 1),
        (RNG.standard_normal((16, 16, 3, 3)).astype(np.float16), 1),
        (np.array([[[[1]], [[-1]]]]), 1),
    ],
)
def test_filters_made_by_hand_are_no_low_bit_weights(w: Any, group: int) -> None:
    f = File(1, w.shape[1] * group, 8, 8)
    assert_close(f.model(f.node("Conv", "x", f.constant(w), group=group)), "FloatProduct")
