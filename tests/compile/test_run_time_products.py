"""Products of two tensors made at run time, from ONNX to the bits or numbers of onnxruntime: integers stay integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hand_graphs import Builder
from lowered import kernels
from qdq_file import KINDS, File
from run_plan import onnxruntime_outputs, random_inputs, run_plan

from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

RNG = np.random.default_rng(41)
FEATURES = {"host": host_features(), "any cpu": frozenset[str]()}


def run(model: onnx.ModelProto, features: frozenset[str], *, exact: bool = True) -> list[tuple[str, str, str]]:
    """(kernel row, left operand, right operand) of each product, once the plan gives the numbers of onnxruntime."""
    plan = lower(model, features, strict=True)
    inputs = random_inputs(model)
    outputs, _ = run_plan(plan, inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():
        if exact:
            np.testing.assert_array_equal(outputs[name], wanted)
            np.testing.assert_array_equal(interpret(lower_graph(model), inputs)[name], wanted)
        else:
            np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    return [(call.kernel, call.activation, call.weights) for call in plan.calls if call.macs]


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[int] | None]] = {
    "scores": ((2, 3, 7, 37), (2, 3, 9, 37), [0, 1, 3, 2]),
    "one query": ((2, 1, 37), (2, 19, 37), [0, 2, 1]),
    "heads apart": ((2, 3, 7, 37), (2, 9, 3, 37), [0, 2, 3, 1]),
    "as it lies": ((2, 7, 37), (2, 37, 9), None),
    "whole vectors": ((2, 13, 37), (2, 37, 64), None),
    "few rows of whole vectors": ((2, 2, 37), (2, 37, 64), None),
    "one right matrix": ((2, 3, 7, 37), (37, 9), None),
    "one right matrix, transposed": ((2, 7, 37), (1, 9, 37), [0, 2, 1]),
    "matrices": ((7, 37), (9, 37), [1, 0]),
    "reduction not last": ((8, 5, 37), (37, 4, 8), [2, 0, 1]),
}


def product(b: Builder, left: str, right: str, perm: list[int] | None) -> str:
    total = b.node("MatMul", left, b.node("Transpose", right, perm=perm) if perm else right)
    return b.node("Mul", b.node("Round", total), b.constant(0.03))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_codes_by_codes(shapes: str, features: str) -> None:
    a, b, perm = SHAPES[shapes]
    f = Builder()
    left = f.quantize(f.input(*a, name="q"), 40.0)
    right = f.quantize(f.input(*b, name="k"), 50.0, 0, 255)
    ((row, *operands),) = run(f.model(product(f, left, right, perm)), FEATURES[features])
    assert operands == ["int8", "uint8"]
    assert row.startswith(("batch-matmul-codes-", "run-time-codes"))
    assert (row == "run-time-codes") == (shapes == "one query")


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_signs_by_signs(shapes: str, features: str) -> None:
    """Popcounts where signs lie along the reduction on both sides, else the same signs as codes."""
    a, b, perm = SHAPES[shapes]
    f = Builder()
    left, right = f.binarize(f.input(*a, name="q")), f.binarize(f.input(*b, name="k"), 0.25)
    ((row, *operands),) = run(f.model(product(f, left, right, perm)), FEATURES[features])
    popcount = shapes in ("scores", "one query", "one right matrix, transposed", "matrices")
    assert operands == (["binary", "binary"] if popcount else ["int8", "int8"])
    assert (row == "run-time-popcount") == popcount


@pytest.mark.parametrize("signs", ["left", "right"])
def test_signs_by_codes(signs: str) -> None:
    f = Builder()
    q, k = f.input(2, 5, 40, name="q"), f.input(2, 6, 40, name="k")
    left = f.binarize(q) if signs == "left" else f.quantize(q)
    right = f.quantize(k) if signs == "left" else f.binarize(k)
    ((_, *operands),) = run(f.model(product(f, left, right, [0, 2, 1])), host_features())
    assert operands == ["int8", "int8"]


def attention(f: File, zero: int) -> str:
    """Two products of quantized tensors and a softmax between, as quantizers of ONNX files write them."""

    def heads(perm: list[int]) -> str:
        return f.node("Transpose", f.node("Reshape", "x", f.constant([1, 17, 4, 8], np.int64)), perm=perm)

    q, k, v = (heads([0, 2, *rest]) for rest in ([1, 3], [3, 1], [1, 3]))
    scores = f.node("MatMul", f.quantized(q, 0.03, zero), f.quantized(k, 0.02))
    weights = f.node("Softmax", f.node("Mul", scores, f.constant(8**-0.5)), axis=-1)
    return f.node("MatMul", f.quantized(weights, 1 / 255, 0, np.uint8), f.quantized(v, 0.02, -zero))


@pytest.mark.parametrize("zero", [0, 7])
@pytest.mark.parametrize("features", FEATURES)
def test_attention_of_a_qdq_file(features: str, zero: int) -> None:
    f = File(1, 17, 32)
    found = run(f.model(attention(f, zero)), FEATURES[features], exact=False)
    assert [operands for _, *operands in found] == [["int8", "int8"], ["uint8", "int8"]]


def test_one_step_behind_both_operands() -> None:
    """(codes x 0.03)(codes x 0.02) is an integer sum times float32(0.03 x 0.02), rounded once."""
    f = File(2, 5, 24)
    k = f.node("Transpose", f.quantized("x", 0.02), perm=[0, 2, 1])
    graph = lower_graph(f.model(f.node("MatMul", f.quantized("x", 0.03), k)), strict=True)
    (product,) = [node for node in kernels(graph) if isinstance(node.operator, ops.Product)]
    (scale,) = product.operator.epilogue.steps
    expected = np.float32(float(np.float32(0.03)) * float(np.float32(0.02)))
    np.testing.assert_array_equal(scale.values, [expected])


def test_a_deep_reduction_is_summed_in_int32() -> None:
    """Beyond 2^24 float32 lacks integers: with all codes at their ends sums are 1100 x 255 x 127."""
    f = Builder()
    left = f.quantize(f.input(1, 4, 1100, name="q"), 1e6, 0, 255)
    right = f.quantize(f.input(1, 1100, 5, name="k"), 1e6)
    total = f.node("MatMul", left, right)
    model = f.model(f.node("Sub", total, f.constant(float(1 << 24))))
    plan = lower(model, host_features(), strict=True)
    assert [call.kernel for call in plan.calls if call.macs] == ["run-time-codes"]
    x = {"q": np.ones((1, 4, 1100), np.float32), "k": np.ones((1, 1100, 5), np.float32)}
    outputs, _ = run_plan(plan, x)
    np.testing.assert_array_equal(next(iter(outputs.values())), np.full((1, 4, 5), 1100 * 255 * 127 - (1 << 24)))


DECLINED: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "broadcast": ((2, 1, 5, 8), (1, 3, 8, 4), "its operands are [2, 1, 5, 8] and [1, 3, 8, 4]; handled: matrices with"),
    "beyond int32": ((1, 1, 70000), (1, 70000, 1), "beyond int32"),
    "floats": ((2, 5, 8), (2, 8, 4), "made at run time"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_is_no_product_of_integers_is_named(case: str) -> None:
    a, b, reason = DECLINED[case]
    f = Builder()
    left = f.node("Mul", f.quantize(f.input(*a, name="q"), 9.0, 0, 255), f.constant(0.1))
    k = f.input(*b, name="k")
    right = k if case == "floats" else f.node("Mul", f.quantize(k, 9.0, 0, 255), f.constant(0.2))
    model = f.model(f.node("MatMul", left, right))
    graph = lower_graph(model)
    (fallback,) = [node.fallback for node in graph.order() if node.fallback]
    assert "is quantized, but no kernel multiplies codes by" in fallback
    assert reason in fallback
    inputs = random_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(interpret(graph, inputs)[name], wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(CompileError, match="would run in float"):
        lower_graph(model, strict=True)


def test_floats_with_one_right_matrix_have_a_kernel() -> None:
    f = Builder()
    y: Any = f.node("MatMul", f.input(2, 3, 7, 37, name="q"), f.input(37, 9, name="k"))
    ((row, *_),) = run(f.model(y), host_features(), exact=False)
    assert row.startswith("batch-matmul-")


INTEGERS: dict[str, tuple[Any, Any, int, int]] = {
    "uint8 by uint8": (np.uint8, np.uint8, 128, 3),
    "int8 by uint8": (np.int8, np.uint8, -5, 0),
    "int8 by int8": (np.int8, np.int8, 0, 0),
}


@pytest.mark.parametrize("right", ["run time", "constant"])
@pytest.mark.parametrize("case", INTEGERS)
@pytest.mark.parametrize("output", ["int32", "float32"])
def test_matmul_integer(case: str, right: str, output: str) -> None:
    left_type, right_type, zero, other = INTEGERS[case]
    f = Builder()
    q = f.input(2, 5, 40, name="q", dtype=KINDS[np.dtype(left_type)])
    limits = np.iinfo(right_type)
    if right == "constant":
        k = f.constant(f.rng.integers(limits.min, limits.max + 1, (40, 7)), right_type)
    else:
        k = f.input(2, 40, 7, name="k", dtype=KINDS[np.dtype(right_type)])
    total = f.node("MatMulInteger", q, k, f.constant(zero, left_type), f.constant(other, right_type))
    y = total if output == "int32" else f.node("Mul", f.node("Cast", total, to=1), f.constant(0.01))
    model = f.model(y)
    plan = lower(model, host_features(), strict=True)
    (call,) = [call for call in plan.calls if call.macs]
    assert call.kind == "QuantizedProduct"
    shapes = {"q": (2, 5, 40), "k": (2, 40, 7)}
    inputs = {
        value.name: RNG.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shapes[value.name]).astype(kind)
        for value, kind in zip(model.graph.input, (left_type, right_type), strict=False)
    }
    weight = inputs.get("k", onnx.numpy_helper.to_array(model.graph.initializer[0]))
    exact = (inputs["q"].astype(np.int64) - zero) @ (weight.astype(np.int64) - other)
    wanted = exact.astype(np.int32) if output == "int32" else exact.astype(np.float32) * np.float32(0.01)
    outputs, _ = run_plan(plan, inputs)
    (got,) = outputs.values()
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


def test_matmul_integer_beyond_float32_or_of_run_time_zero_points_goes_through_tvm() -> None:
    for depth, zero, reason in ((700, "constant", "2^24"), (8, "run time", "zero points are made at run time")):
        f = Builder()
        q = f.input(4, depth, name="q", dtype=KINDS[np.dtype(np.uint8)])
        k = f.input(depth, 3, name="k", dtype=KINDS[np.dtype(np.uint8)])
        zeros = f.constant(200, np.uint8) if zero == "constant" else f.input(1, name="z", dtype=2)
        model = f.model(f.node("MatMulInteger", q, k, zeros))
        (fallback,) = [call.fallback for call in lower(model, host_features()).calls if call.fallback]
        assert fallback.startswith("MatMulInteger goes through TVM")
        assert reason in fallback
