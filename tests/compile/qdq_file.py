"""QDQ files node by node, and what their lowered graphs must be: these products, with onnxruntime's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
from lowered import kernels
from run_plan import onnxruntime_outputs, random_inputs

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower_graph

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
    found = [n for n in kernels(graph) if isinstance(n.operator, ops.Product) and n.operator.inputs == 1]
    assert [node.op for node in found] == list(products)
    inputs = some_inputs(model)
    ((name, wanted),) = onnxruntime_outputs(model, inputs).items()
    np.testing.assert_allclose(interpret(graph, inputs)[name], wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    return found
