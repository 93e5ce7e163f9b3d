"""Layers of QDQ files on integer kernels, whatever moves of data and factors stand in between; the others are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import pytest
from lowered import kernels
from run_plan import onnxruntime_outputs, random_inputs

from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph

RNG = np.random.default_rng(3)
KINDS = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3}


class File:
    """A QDQ file node by node; methods return the name of what they made."""

    def __init__(self, *shape: int, dtype: Any = np.float32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", KINDS[np.dtype(dtype)], shape)]

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def dequantized(self, q: str, step: Any, zero: Any, dtype: Any, **attributes: Any) -> str:
        return self.node("DequantizeLinear", q, self.constant(step), self.constant(zero, dtype), **attributes)

    def quantized(self, x: str, step: float = 0.03, zero: int = 0, dtype: Any = np.int8) -> str:
        q = self.node("QuantizeLinear", x, self.constant(step), self.constant(zero, dtype))
        return self.dequantized(q, step, zero, dtype)

    def weight(self, *shape: int) -> str:
        """int8 by output channel, the first axis."""
        q = self.constant(RNG.integers(-127, 128, shape), np.int8)
        return self.dequantized(q, RNG.uniform(0.005, 0.02, shape[0]), np.zeros(shape[0]), np.int8, axis=0)

    def model(self, y: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "g", self.inputs, [helper.make_empty_tensor_value_info(y)], self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        del model.graph.output[:]
        model.graph.output.append(inferred.graph.output[0])
        return model


def some_inputs(model: onnx.ModelProto) -> dict[str, Any]:
    """Normal numbers, or every code of the input's type."""
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    if kind == np.float32:
        return random_inputs(model)
    limits = np.iinfo(kind)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": RNG.integers(limits.min, limits.max + 1, shape).astype(kind)}


def assert_close(model: onnx.ModelProto, *products: str, strict: bool = True) -> list[Any]:
    """Products of these kinds, with the numbers of onnxruntime but for the order of its float sums."""
    graph = lower_graph(model, strict=strict)
    found = [node for node in kernels(graph) if isinstance(node.operator, ops.QuantizedProduct | ops.FloatProduct)]
    assert [node.op for node in found] == list(products)
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(interpret(graph, inputs)[name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    return found


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


MOVES = {
    "Transpose": channels_first,
    "Reshape": lambda f, x: f.node("Reshape", x, ints(f, 1, 16, 8, 8)),
    "Slice": lambda f, x: f.node("Slice", channels_first(f, x), ints(f, 2), ints(f, 8), ints(f, 3)),
    "Pad": lambda f, x: f.node("Pad", channels_first(f, x), ints(f, 0, 0, 1, 2, 0, 0, 2, 1)),
    "reflect": lambda f, x: f.node("Pad", channels_first(f, x), ints(f, 0, 0, 1, 2, 0, 0, 2, 1), mode="reflect"),
    "MaxPool": lambda f, x: f.node("MaxPool", channels_first(f, x), kernel_shape=[2, 2], strides=[2, 2]),
    "Concat": lambda f, x: f.node("Concat", *[channels_first(f, x)] * 2, axis=2),
}


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, -7), (np.uint8, 100)])
@pytest.mark.parametrize("move", MOVES)
def test_layers_behind_moves_of_data_are_integer_products(move: str, dtype: Any, zero: int) -> None:
    f = File(1, 8, 8, 16)
    x = MOVES[move](f, f.quantized("x", zero=zero, dtype=dtype))
    assert_close(f.model(f.node("Conv", x, f.weight(8, 16, 3, 3), pads=[1] * 4)), "QuantizedProduct")


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
    assert "joined of several steps" in product.fallback
    with pytest.raises(CompileError, match="joined of several steps"):
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
            y = f.node("MatMul", x, x if right == "run time" else f.constant(RNG.standard_normal((8, 8))))
        with pytest.raises(CompileError, match="1 layer would run in float") as error:
            lower_graph(f.model(y), strict=True)
        assert {"float weights": "weights are float32", "run time": "at run time", "no kernel": "weights are int8"}[
            right
        ] in str(error.value)


def test_a_product_that_tvm_fuses_with_what_follows_is_still_named() -> None:
    f = File(4, 8, dtype=np.uint8)
    product = f.node("MatMulInteger", "x", f.constant(RNG.integers(-9, 9, (8, 5)), np.int8))
    scaled = f.node("Mul", f.node("Cast", product, to=onnx.TensorProto.FLOAT), f.constant(0.1))
    model = f.model(f.node("Exp", scaled))
    reasons = [call.fallback for call in lower(model, frozenset()).calls if call.fallback]
    assert len(reasons) == 1
    assert f"'{product}': MatMulInteger goes through TVM" in reasons[0]


# ---- float weights of few levels ----


def few(kind: str, *shape: int) -> Any:
    """Float weights of -s, 0, s by output channel (the first axis)."""
    levels = RNG.integers(-1, 2, shape) if kind.startswith("ternary") else RNG.choice([-1, 1], shape)
    by = 1 if kind.endswith("tensor") else shape[0]
    scale = RNG.uniform(0.01, 0.3, by).astype(np.float32)
    return levels.astype(np.float32) * scale.reshape(-1, *([1] * (len(shape) - 1)))


@pytest.mark.parametrize("kind", ["ternary", "binary", "ternary tensor", "binary tensor"])
@pytest.mark.parametrize("product", ["Conv", "depthwise", "MatMul", "Gemm"])
def test_float_weights_of_few_levels_are_low_bit_weights(product: str, kind: str) -> None:
    f = File(*((1, 6, 7, 7) if product in ("Conv", "depthwise") else (5, 6)))
    x = f.quantized("x", zero=5)
    if product == "Conv":
        y = f.node("Conv", x, f.constant(few(kind, 8, 6, 3, 3)))
    elif product == "depthwise":
        y = f.node("Conv", x, f.constant(few(kind, 6, 1, 3, 3)), group=6)
    elif product == "Gemm":
        y = f.node("Gemm", x, f.constant(few(kind, 8, 6)), f.constant(RNG.uniform(-1, 1, 8)), transB=1)
    else:
        y = f.node("MatMul", x, f.constant(few(kind, 8, 6).T.copy()))
    (node,) = assert_close(f.model(y), "QuantizedProduct")
    assert node.operator.weight.format.name == kind.split()[0]


def test_other_float_weights_stay_float() -> None:
    """One element off by its last bit, an average, a single column, weights without a quantized activation."""
    off = few("ternary", 8, 6)
    off[off != 0] = np.concatenate([np.nextafter(off[off != 0][:1], np.float32(9)), off[off != 0][1:]])
    for weights, quantized in ((off, True), (np.full((8, 6), 0.25), True), (few("binary", 8, 6), False)):
        f = File(5, 6)
        y = f.node("Gemm", f.quantized("x") if quantized else "x", f.constant(weights), transB=1)
        (node,) = assert_close(f.model(y), "FloatProduct", strict=False)
        assert (node.fallback is not None) == quantized
