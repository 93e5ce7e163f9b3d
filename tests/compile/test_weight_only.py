"""Floats times low-bit weights with a scale for each output channel: from ONNX to the numbers of onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from qdq_file import File, some_inputs
from run_plan import onnxruntime_outputs, run_plan

from subbyte.errors import CompileError
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

RNG = np.random.default_rng(17)
NO_FEATURES: frozenset[str] = frozenset()


def weight(f: File, shape: tuple[int, ...], axis: int | None, dtype: Any = np.int8, zero: int = 0) -> str:
    limits = np.iinfo(dtype)
    q = f.constant(RNG.integers(limits.min, limits.max + 1, shape), dtype)
    count = () if axis is None else (shape[axis],)
    scale, zeros = RNG.uniform(0.005, 0.02, count), np.full(count, zero)
    return f.dequantized(q, scale, zeros, dtype, **({} if axis is None else {"axis": axis}))


def run(model: onnx.ModelProto, features: frozenset[str]) -> Any:
    """The one product of a model, compiled and run against onnxruntime, with its plan."""
    plan = lower(model, features, strict=True)
    (call,) = [call for call in plan.calls if call.macs]
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    outputs, _ = run_plan(plan, inputs)
    np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    return plan, call


@pytest.mark.parametrize("features", [host_features(), NO_FEATURES], ids=["host", "any cpu"])
@pytest.mark.parametrize("axis", [None, 1], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("x", [(1, 40), (3, 40), (2, 3, 5, 40)])
def test_matrix(x: tuple[int, ...], axis: int | None, features: frozenset[str]) -> None:
    f = File(*x)
    plan, call = run(f.model(f.node("MatMul", "x", weight(f, (40, 33), axis))), features)
    assert (call.activation, call.weights, call.fallback) == ("float32", "int8", None)
    assert len(plan.weights) < 2 * 40 * 64  # float32 would be four bytes each


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_gemm_with_bias(dtype: Any) -> None:
    f = File(5, 24)
    w = weight(f, (10, 24), 0, dtype, 128 * (dtype is np.uint8))
    _, call = run(f.model(f.node("Gemm", "x", w, f.constant(RNG.uniform(-1, 1, 10)), transB=1)), host_features())
    assert (call.weights, call.fallback) == ("int8", None)


WINDOWS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "padded": ((2, 6, 7, 5), (9, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ((1, 3, 9, 8), (10, 3, 3, 2), {"strides": [2, 1], "dilations": [1, 2]}),
    "depthwise": ((1, 12, 6, 6), (12, 1, 3, 3), {"group": 12, "pads": [0, 1, 1, 0]}),
    "pointwise": ((2, 17, 4, 3), (5, 17, 1, 1), {}),
    "one axis": ((2, 6, 21), (7, 6, 5), {"pads": [2, 2]}),
}


@pytest.mark.parametrize("features", [host_features(), NO_FEATURES], ids=["host", "any cpu"])
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution(window: str, features: frozenset[str]) -> None:
    x, w, attributes = WINDOWS[window]
    f = File(*x)
    y = f.node("Relu", f.node("Conv", "x", weight(f, w, 0), f.constant(RNG.uniform(-1, 1, w[0])), **attributes))
    _, call = run(f.model(y), features)
    assert (call.weights, call.fallback) == ("int8", None)


def test_a_flattened_image_keeps_its_columns() -> None:
    """The weights take the order in which a convolution leaves pixels, bytes as they are."""
    f = File(2, 4, 5, 6)
    y = f.node("Conv", "x", f.constant(RNG.standard_normal((3, 4, 2, 2))))
    y = f.node("MatMul", f.node("Flatten", y), weight(f, (60, 11), 1))
    model = f.model(y)
    plan = lower(model, host_features(), strict=True)
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(run_plan(plan, inputs)[0][name], wanted, rtol=1e-5, atol=1e-5)
    assert [call.weights for call in plan.calls if call.macs] == ["float32", "int8"]


@pytest.mark.parametrize("quantized", [False, True], ids=["floats", "codes"])
@pytest.mark.parametrize(("w", "axis"), [((6, 6), 0), ((6, 4), 0), ((6, 6, 3, 3), 1)])
def test_scales_along_the_reduction_stay_in_the_sum(w: tuple[int, ...], axis: int, quantized: bool) -> None:
    f = File(*((3, 6) if len(w) == 2 else (2, 6, 8, 8)))
    x = f.quantized("x") if quantized else "x"
    model = f.model(f.node("MatMul" if len(w) == 2 else "Conv", x, weight(f, w, axis)))
    plan = lower(model, host_features())
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(run_plan(plan, inputs)[0][name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    assert [call.fallback for call in plan.calls if call.macs] == ["its scales run along the reduction"]


@pytest.mark.parametrize("change", ["Slice", "Concat", "Neg", "Mul"])
def test_weights_that_an_operator_changes_are_a_fallback(change: str) -> None:
    """No kernel decodes weights that were sliced or multiplied by element; `--strict` refuses the product."""
    f = File(5, 24)
    w = weight(f, (24, 10), 1)
    more: dict[str, list[str]] = {
        "Slice": [f.constant([2], np.int64), f.constant([9], np.int64), f.constant([1], np.int64)],
        "Concat": [w],
        "Neg": [],
        "Mul": [f.constant(RNG.uniform(1, 2, (24, 10)))],
    }
    changed = f.node(change, w, *more[change], **({"axis": 1} if change == "Concat" else {}))
    model = f.model(f.node("MatMul", "x", f.node("Identity", changed)))
    graph = lower_graph(model, NO_FEATURES)
    ((fallback, node),) = [(node.fallback, node) for node in graph.order() if node.fallback]
    assert node.op == "BatchMatMul"
    assert fallback == f"weights are int8, but '{changed}' ({change}) in between is computed in float32"
    with pytest.raises(CompileError, match="1 layer would run in float"):
        lower_graph(model, NO_FEATURES, strict=True)
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(interpret(graph, inputs)[name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
