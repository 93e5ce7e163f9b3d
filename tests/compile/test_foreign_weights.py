"""Weights of other people's files: as many bits in the bundle as in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from run_plan import onnxruntime_outputs, random_inputs

import subbyte
from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower_graph


@pytest.mark.parametrize(
    ("kind", "zero", "expected"), [("INT4", 0, "int4"), ("UINT4", 8, "int4"), ("UINT4", 3, "uint4"), ("INT16", 0, None)]
)
def test_qdq_weights_keep_their_bits(kind: str, zero: int, expected: str | None) -> None:
    """Four bits in the file are four bits in the bundle; sixteen are no low-bit weight."""
    rng = np.random.default_rng(1)
    low = {"INT4": -8, "UINT4": 0, "INT16": -30_000}[kind]
    levels = rng.integers(low, low + 16 if kind != "INT16" else 30_000, (12, 5))
    number = onnx.TensorProto.DataType.Value(kind)
    constants = [
        helper.make_tensor("w", number, (12, 5), levels.reshape(-1)),
        helper.make_tensor("w_zero", number, (), [zero]),
        helper.make_tensor("step", 1, (), [0.05]),
        helper.make_tensor("zero", 3, (), [3]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "step", "w_zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"], "product"),
    ]
    info = [helper.make_tensor_value_info("x", 1, (3, 12))], [helper.make_tensor_value_info("y", 1, (3, 5))]
    graph = helper.make_graph(nodes, "g", *info, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    lowered = lower_graph(model)
    operators = [node.operator for node in lowered.order()]
    products = [o.right.format.name for o in operators if isinstance(o, ops.Product) and o.of_integers]
    assert products == ([] if expected is None else [expected])
    inputs = random_inputs(model)
    wanted = onnxruntime_outputs(model, inputs)["y"]
    np.testing.assert_allclose(interpret(lowered, inputs)["y"], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("depth", [16, 40])
def test_matmul_nbits_of_onnxruntime_compiles(depth: int) -> None:
    """An odd number of blocks leaves a padding nibble beside the zero points, which is not zero."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    info = [helper.make_tensor_value_info("x", 1, (3, depth))], [helper.make_tensor_value_info("y", 1, (3, 6))]
    weight = np.random.default_rng(0).standard_normal((depth, 6)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    graph = helper.make_graph(nodes, "g", *info, [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, block_size=16, is_symmetric=False)
    quantizer.process()
    model = quantizer.model.model
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    inputs = random_inputs(model)
    wanted = onnxruntime_outputs(model, inputs)["y"]
    got = interpret(lower_graph(model), inputs)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


# ---- tables ----

ROWS, COLUMNS = 50, 24
IDS = np.array([[3, 49, 0], [-1, 7, -50]])


def table_model(dtype: str, by: str, axis: int, constant: bool, zero: bool, block: int = 0) -> onnx.ModelProto:
    """DequantizeLinear of a table [50, 24], and a Gather of it by ids [2, 3]."""
    rng = np.random.default_rng(4)
    kind = onnx.TensorProto.DataType.Value(dtype.upper())
    low, high = {"int8": (-128, 128), "uint8": (0, 256), "int4": (-8, 8)}[dtype]
    of_scales = {"tensor": (), "row": (ROWS,), "column": (COLUMNS,), "block": (ROWS, COLUMNS // (block or 1))}[by]
    points = rng.integers(0, 8, of_scales) if zero else np.zeros(of_scales, np.int64)
    constants = [
        helper.make_tensor("w", kind, (ROWS, COLUMNS), rng.integers(low, high, ROWS * COLUMNS)),
        helper.make_tensor("scale", 1, of_scales, rng.uniform(0.01, 0.1, of_scales).reshape(-1)),
        helper.make_tensor("zero", kind, of_scales, points.reshape(-1)),
    ]
    attributes = {"axis": int(by in ("column", "block")), **({"block_size": block} if block else {})}
    ids = IDS % 24 if axis else IDS
    inputs = [] if constant else [helper.make_tensor_value_info("i", 7, IDS.shape)]
    inputs.append(helper.make_tensor_value_info("x", 1, (1,)))  # a model has an input
    constants += [onnx.numpy_helper.from_array(ids, "i")] if constant else []
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["table"], **attributes),
        helper.make_node("Gather", ["table", "i"], ["rows"], "rows", axis=axis),
        helper.make_node("Add", ["rows", "x"], ["y"], "sum"),
    ]
    shape = (*IDS.shape, COLUMNS) if axis == 0 else (ROWS, *IDS.shape)
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, shape)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def table_inputs(axis: int, constant: bool) -> dict[str, np.ndarray]:
    return {**({} if constant else {"i": IDS % 24 if axis else IDS}), "x": np.zeros(1, np.float32)}


@pytest.mark.parametrize("constant", [False, True], ids=["ids of run time", "constant ids"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("by", ["tensor", "row", "column"])
@pytest.mark.parametrize(("dtype", "zero"), [("int8", False), ("uint8", True), ("int4", False), ("int8", True)])
def test_rows_of_a_quantized_table_are_those_of_the_file(
    dtype: str, zero: bool, by: str, axis: int, constant: bool
) -> None:
    model, inputs = table_model(dtype, by, axis, constant, zero), table_inputs(axis, constant)
    graph = lower_graph(model)
    np.testing.assert_array_equal(interpret(graph, inputs)["y"], onnxruntime_outputs(model, inputs)["y"])
    tables = [graph.values[node.inputs[0]].data for node in graph.order() if node.op == "Gather"]
    assert [table.dtype.name for table in tables if table.shape == (ROWS, COLUMNS)] == ["uint8"]
    assert not graph.notes


@pytest.mark.parametrize("by", ["tensor", "row", "column"])
def test_a_quantized_table_stays_bytes_in_the_bundle(by: str, tmp_path: Path) -> None:
    model, inputs = table_model("int8", by, 0, False, by == "row"), table_inputs(0, False)
    report = subbyte.compile(model, tmp_path / "m.subbyte", golden_inputs=inputs, strict=True)
    floats = {"tensor": 1, "row": 2 * ROWS, "column": COLUMNS}[by]  # scales, zero points
    assert report.weights_bytes <= ROWS * COLUMNS + 4 * floats + 4 * 64  # 64: what a place is aligned to
    reads = max(row.weight_bytes for row in report.rows)
    assert IDS.size * COLUMNS <= reads < IDS.size * COLUMNS + 4 * COLUMNS
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        np.testing.assert_array_equal(session.run(list(inputs.values())), onnxruntime_outputs(model, inputs)["y"])


def test_a_layer_behind_rows_of_a_quantized_table_is_an_integer_product() -> None:
    model = table_model("int8", "tensor", 0, False, True)
    del model.graph.node[2:], model.graph.input[1:]
    weight = np.random.default_rng(0).integers(-127, 128, (COLUMNS, 8)).astype(np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "v"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["v", "scale"], ["vf"]))
    model.graph.node.append(helper.make_node("MatMul", ["rows", "vf"], ["y"], "product"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 8
    lowered = lower_graph(model, strict=True)
    assert [node for node in lowered.order() if node.op == "QuantizedProduct"]
    inputs = {"i": IDS}
    wanted = onnxruntime_outputs(model, inputs)["y"]
    np.testing.assert_allclose(interpret(lowered, inputs)["y"], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_a_table_that_becomes_float32_is_named() -> None:
    model = table_model("int8", "block", 0, False, False, block=8)
    graph = lower_graph(model)
    reasons = [node.fallback for node in graph.order() if node.fallback]
    assert reasons == ["its table 'table' is int8 in the file and float32 here: its scales are by group"]
    with pytest.raises(CompileError, match="'rows': its table 'table' is int8"):
        lower_graph(model, strict=True)
    inputs = table_inputs(0, False)
    np.testing.assert_array_equal(interpret(graph, inputs)["y"], onnxruntime_outputs(model, inputs)["y"])


def test_quantized_constants_that_become_float32_are_noted() -> None:
    model = table_model("int8", "tensor", 0, False, False)
    del model.graph.node[1:], model.graph.input[0]
    model.graph.node.append(helper.make_node("Add", ["table", "x"], ["y"], "position"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (ROWS, COLUMNS)))
    graph = lower_graph(model, strict=True)
    assert graph.notes == ["'table' is int8 in the file and float32 here: Add 'position' has no kernel for it"]
