"""Operators that TVM computes, at sizes as models have them, against ONNX: axes, scalars, bodies of functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from hand_graphs import Builder
from run_plan import onnxruntime_outputs, run_plan

from subbyte.errors import CompileError, InputError, ModelError
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

HOST = host_features()
RNG = np.random.default_rng(5)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def scalar(value: int) -> Any:
    return np.array(value, np.int64)


IMAGE, ROWS, MATRIX = numbers(1, 16, 32, 32), numbers(2, 64, 48), numbers(64, 128)
TABLE = numbers(50, 4)
EMPTY = np.array([], np.float32)


def case(op: str, *inputs: Any, outputs: int = 1, opset: int = 21, **attributes: Any) -> Any:
    """A node: the first input comes at run time, those in lists too, arrays are constants of the file."""
    return pytest.param(op, inputs, outputs, opset, attributes, id=f"{op}-{attributes}"[:60])


CASES: list[Any] = [
    *[case("Gather", IMAGE, index, axis=1) for index in (scalar(2), np.array([2]), np.array([[1, -16], [3, 0]]))],
    case("Gather", numbers(2000, 384), [RNG.integers(-2000, 2000, (1, 128))]),
    *[case(op, ROWS, axis=1, keepdims=keep) for op in ("ArgMax", "ArgMin") for keep in (0, 1)],
    *[
        case(op, numbers(2, 64, 48), np.array(axes), keepdims=keep)
        for op in ("ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp")
        for axes, keep in (([1], 0), ([0, -1], 1))
    ],
    *[
        case(op, -np.abs(ROWS) - np.float32(0.1), np.array([], np.int64), noop_with_empty_axes=1)
        for op in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", "ReduceLogSumExp")
    ],
    *[case("Pad", IMAGE, np.array([0, 0, 3, 2, 0, 0, 1, 4]), mode=mode) for mode in ("constant", "reflect", "edge")],
    case("Pad", IMAGE, np.array([3, 2, 1, 4]), np.array(2, np.float32), np.array([-2, -1])),
    case("Slice", IMAGE, np.array([-1, 20]), np.array([-100, 3]), np.array([1, 3]), np.array([-1, -3])),
    case("Split", ROWS, np.array([20, 44]), outputs=2, axis=1),
    *[case("Trilu", numbers(2, 40, 50), k, upper=1) for k in (scalar(0), np.array([2]), scalar(-3), scalar(200))],
    *[case("Resize", IMAGE, "", np.array([1, 1, 2, 2], np.float32), mode=mode) for mode in ("nearest", "linear")],
    *[  # what is not given, as exporters to opset 11 write it
        case("Resize", IMAGE, EMPTY, *given, opset=opset, mode=mode)
        for given in ([EMPTY, np.array([1, 16, 64, 96])], [np.array([1, 1, 2, 3], np.float32)])
        for opset, mode in ((11, "nearest"), (13, "linear"), (19, "linear"))
    ],
    *[case("Softmax", numbers(2, 64, 48), axis=axis) for axis in (0, 1)],
    case("LayerNormalization", ROWS, numbers(48), numbers(48), outputs=3),
    case("LayerNormalization", ROWS, numbers(64, 48), numbers(64, 48), axis=1),
    case("GroupNormalization", IMAGE, numbers(16), numbers(16), num_groups=4),
    case("MeanVarianceNormalization", IMAGE),
    case("MaxUnpool", numbers(1, 1, 2, 2), [np.array([[[[5, 7], [13, 15]]]])], kernel_shape=[2, 2], strides=[2, 2]),
    case("RoiAlign", IMAGE, np.abs(numbers(7, 4)) * 8, [np.zeros(7, np.int64)], output_height=4, sampling_ratio=2),
    case("GridSample", IMAGE, [numbers(1, 20, 21, 2)], padding_mode="border"),
    case("Swish", MATRIX, opset=24),
    case("Celu", MATRIX),
    case("Attention", numbers(1, 4, 16, 8), [numbers(1, 4, 20, 8)], [numbers(1, 4, 20, 8)], opset=23),
    case("RotaryEmbedding", numbers(2, 4, 16, 8), TABLE, TABLE, [RNG.integers(0, 50, (2, 16))], opset=23),
    case("SoftmaxCrossEntropyLoss", numbers(8, 10), [RNG.integers(0, 10, 8)]),
    *[case("Mul", ROWS, factor) for factor in (np.float32(1.7), numbers(1), numbers(64, 1), numbers(2, 1, 1))],
]


def model_of(
    op: str, inputs: Any, outputs: int, opset: int, attributes: Any
) -> tuple[onnx.ModelProto, dict[str, Any], dict[str, Any]]:
    """The model of one node behind a Neg, its inputs, and what a reference makes of them."""
    b = Builder()
    feeds = {"x": inputs[0]}
    names = [b.node("Neg", b.input(*inputs[0].shape))]
    for index, given in enumerate(inputs[1:]):
        if isinstance(given, list):
            feeds[f"x{index}"] = given[0]
            kind = helper.np_dtype_to_tensor_dtype(given[0].dtype)
            names.append(b.input(*given[0].shape, name=f"x{index}", dtype=kind))
        else:
            names.append(given if isinstance(given, str) else b.constant(given, given.dtype))
    made = b.node(op, *names, outputs=outputs, **attributes)
    results = [made] if outputs == 1 else made
    graph = helper.make_graph(
        b.nodes, "g", b.inputs, [helper.make_empty_tensor_value_info(r) for r in results], b.constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    evaluator = onnx.reference.ReferenceEvaluator(model)
    wanted = dict(zip(results, evaluator.run(None, feeds), strict=True))
    del model.graph.output[:]
    for name, array in wanted.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.output.append(helper.make_tensor_value_info(name, kind, array.shape))
    return model, feeds, wanted


@pytest.mark.parametrize(("op", "inputs", "outputs", "opset", "attributes"), CASES)
def test_operators_equal_the_reference(op: str, inputs: Any, outputs: int, opset: int, attributes: Any) -> None:
    model, feeds, wanted = model_of(op, inputs, outputs, opset, attributes)
    got, _ = run_plan(lower(model, HOST), feeds)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [[1], [-1]])
def test_a_shape_that_onnx_does_not_infer_comes_from_the_body_of_the_function(axes: list[int]) -> None:
    b = Builder()
    x = b.input(2, 6, 5, 5)
    normal = b.node("GroupNormalization", b.node("Neg", x), b.uniform(6), b.uniform(6), num_groups=3)
    y = b.node("ReduceMax", normal, b.constant(axes, np.int64))
    graph = helper.make_graph(b.nodes, "g", b.inputs, [helper.make_empty_tensor_value_info(y)], b.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(y, 1, [2, 1, 5, 5] if axes == [1] else [2, 6, 5, 1]))
    feeds = {"x": numbers(2, 6, 5, 5)}
    (wanted,) = onnxruntime_outputs(model, feeds).values()
    (got,) = run_plan(lower(model, HOST), feeds)[0].values()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_products_inside_of_a_function_get_kernels() -> None:
    model, feeds, wanted = model_of(
        "Attention", (numbers(1, 4, 16, 8), [numbers(1, 4, 20, 8)], [numbers(1, 4, 20, 8)]), 1, 23, {}
    )
    graph = lower_graph(model, HOST)
    kinds = [node.op for node in graph.order()]
    assert kinds.count("BatchMatMul") == 2
    assert "Softmax" in kinds
    for name, array in wanted.items():
        np.testing.assert_allclose(interpret(graph, feeds)[name], array, rtol=1e-4, atol=1e-5)


def test_an_index_inside_of_a_function_is_checked_too() -> None:
    inputs = (numbers(2, 4, 16, 8), TABLE, TABLE, [RNG.integers(0, 50, (2, 16))])
    model, feeds, _ = model_of("RotaryEmbedding", inputs, 1, 23, {})
    feeds["x2"][1, 3] = 50
    with pytest.raises(InputError, match=r"'n1\.RotaryEmbedding': index 50, element 19 .* expected -50 \.\. 49"):
        interpret(lower_graph(model, HOST), feeds)


def test_a_node_that_tvm_cannot_import_is_the_one_that_is_named() -> None:
    b = Builder()
    x = b.node("Sin", b.input(2, 6))
    k = b.node("Cast", b.input(1, name="k"), to=7)
    y = b.node("CumSum", b.node("Cos", x), k)
    with pytest.raises(CompileError, match=r"TVM cannot import 'n3\.CumSum' \(CumSum\): CumSum axis input must be"):
        lower(b.model(b.node("Exp", y)), HOST)


def test_what_depends_on_values_of_run_time_is_refused() -> None:
    b = Builder()
    with pytest.raises(ModelError, match=r"the shape of .* depends on run-time values"):
        lower(b.model(b.node("Cast", b.node("NonZero", b.input(4, 4)), to=1)), HOST)


INT32 = onnx.TensorProto.INT32


def test_negative_floats_wrap_in_uint64_as_in_other_types() -> None:
    b = Builder()
    x = b.input(2, 4)
    y = b.node("Cast", b.node("Cast", x, to=onnx.TensorProto.UINT64), to=onnx.TensorProto.INT64)
    given = np.array([[-3.75, 0.5, -7e4, 3.0], [5e9, 2.0**63, 2.0**63 + 2.0**40, -5e9]], np.float32)
    (got,) = run_plan(lower(b.model(y), HOST), {"x": given})[0].values()
    wanted = [[-3, 0, -70000, 3], [5 * 10**9, -(2**63), 2**40 - 2**63, -5 * 10**9]]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("op", ["PRelu", "ReduceL2"])
def test_integers_are_computed_by_the_body_where_tvm_takes_floats_alone(op: str) -> None:
    given = RNG.integers(-9, 9, (2, 6)).astype(np.int32)
    b = Builder()
    x = b.input(2, 6, dtype=INT32)
    y = b.node(op, x, b.constant(3, np.int32)) if op == "PRelu" else b.node(op, x, keepdims=0)
    (got,) = run_plan(lower(b.model(y), HOST), {"x": given})[0].values()
    wanted = np.where(given < 0, 3 * given, given) if op == "PRelu" else np.sqrt((given.astype(float) ** 2).sum())
    np.testing.assert_array_equal(got, wanted.astype(np.int32))


def test_what_is_refused_is_said_in_our_words() -> None:
    b = Builder()
    power = b.model(b.node("Pow", b.input(2, 6, dtype=INT32), b.constant(3, np.int32)))
    with pytest.raises(CompileError, match=r"\(Pow\): 'x' is int32; handled: float32, float64"):
        lower(power, HOST)
    b = Builder()
    x = b.input(2, 6)
    fill = b.node("ReduceMax", x, keepdims=0)
    with pytest.raises(CompileError, match=r"\(Pad\): its fill '.*' is made at run time; handled: constants"):
        lower(b.model(b.node("Pad", x, b.constant([0, 1, 0, 1], np.int64), fill)), HOST)
    b = Builder()
    weights = b.constant(np.ones((1, 1, 3, 3)), np.int8)
    product = b.node("ConvInteger", b.input(1, 1, 5, 5, dtype=onnx.TensorProto.UINT8), weights)
    with pytest.raises(CompileError, match=r"\(ConvInteger\): .*; quantize with QuantFormat.QDQ"):
        lower(b.model(product), HOST)
