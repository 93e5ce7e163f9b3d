"""Weights of other people's files: as many bits in the bundle as in the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from run_plan import onnxruntime_outputs, random_inputs

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
    products = [operator.weight.format.name for operator in operators if isinstance(operator, ops.QuantizedProduct)]
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
