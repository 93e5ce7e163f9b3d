"""Run a lowered graph in NumPy: each kernel by its reference arithmetic, the rest by ONNX's reference evaluator.

Slow and exact; tests compare with it, and it needs neither TVM nor a compiler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.reference

from subbyte.errors import InputError
from subbyte.tvm_kernels.graph import Array, Graph, Node
from subbyte.tvm_kernels.operators import run


def interpret(graph: Graph, inputs: Mapping[str, Array], every: bool = False) -> dict[str, Array]:
    """Outputs by name (with `every`: all values, as they are in memory); raises InputError for a wrong input."""
    values: dict[str, Array] = {}
    for name in graph.inputs:
        value = graph.values[name]
        if name not in inputs or tuple(np.shape(inputs[name])) != value.shape:
            got = list(np.shape(inputs[name])) if name in inputs else "nothing"
            raise InputError(f"input '{name}' needs shape {list(value.shape)}, got {got}")
        values[name] = np.asarray(inputs[name], value.dtype)
    for name, value in graph.values.items():
        if value.data is not None:
            values[name] = value.data
    for node in graph.order():
        arrays = [values[name] if name else None for name in node.inputs]
        for name, array in zip(node.outputs, _results(graph, node, arrays), strict=False):
            if name:
                value = graph.values[name]
                values[name] = np.asarray(array).astype(value.memory_dtype, copy=False).reshape(value.memory_shape)
    return values if every else {name: values[name] for name in graph.outputs}


def _results(graph: Graph, node: Node, arrays: list[Array | None]) -> list[Array]:
    if node.operator is not None:
        own = [array for array in arrays[: node.operator.inputs] if array is not None]
        tensors = {n: a for n, a in zip(node.inputs, arrays, strict=True) if a is not None}
        return run(node.operator, own, tensors)
    first = arrays[0]
    if node.op == "View" and first is not None:
        return [first]
    if node.op == "Part" and first is not None:
        start = node.attributes["start"]
        return [first.reshape(-1)[start : start + graph.values[node.outputs[0]].size]]
    if node.op == "UnpackBits" and first is not None:
        return [graph.values[node.inputs[0]].storage.levels(first).astype(np.float32)]
    evaluator = onnx.reference.ReferenceEvaluator(node_proto(node), opsets={"": graph.opset})
    feeds = {name: array for name, array in zip(node.inputs, arrays, strict=True) if name}
    return list(evaluator.run(None, feeds))


def node_proto(node: Node) -> onnx.NodeProto:
    """The ONNX node of a node without a kernel."""
    attributes = {
        key: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in node.attributes.items()
        if key not in ("explicit", "copied")
    }
    return onnx.helper.make_node(node.op, node.inputs, node.outputs, node.name, domain=node.domain, **attributes)
