"""Codes that something reads as numbers: their integer levels as float32.

Kernels take codes as they are; what stays ONNX gets the levels by a sum over windows of one element, which a `Mul`
behind it may join. Packed signs are unpacked.
"""

from __future__ import annotations

import numpy as np

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node


def as_float(graph: Graph, codes: str, like: Node) -> str:
    """The integer levels of codes (or the signs of bits) as float32: a sum over windows of one element."""
    value = graph.values[codes]
    if isinstance(value.storage, ops.Bits):
        return graph.emit("UnpackBits", [codes], value.shape, codes, like, domain="subbyte")
    assert isinstance(value.storage, ops.Codes)
    channels = value.shape[-1] if value.shape else 1
    rows = value.size // channels
    window = ops.Conv2d(1, rows, 1, channels, channels, (1, 1), groups=channels)
    operator = ops.Pool2d(like.name, "sum", window, value.storage, ops.Epilogue())
    output = graph.emit("Pool2d", [codes], value.shape, codes, like, domain="kernel", operator=operator, reads="same")
    return output


def coded_inputs_as_float(graph: Graph) -> None:
    """Nodes that stay ONNX read levels as float32; low-bit weights they read become plain constants."""
    moves = ("View", "Transpose", "Slice", "Gather", "Split", "Concat")
    for node in graph.order():
        for name in list(dict.fromkeys(node.inputs)):
            if not name:
                continue
            value = graph.values[name]
            if value.weight is not None and value.data is None:
                value.data, value.weight = np.ascontiguousarray(value.weight.value(), np.float32), None
            if node.operator is not None or isinstance(value.storage, ops.Float) or node.op == "UnpackBits":
                continue
            if node.op in moves and graph.values[node.outputs[0]].storage == value.storage:
                continue
            graph.replace_uses(name, as_float(graph, name, node), [node])
    for index, name in enumerate(graph.outputs):
        value = graph.values[name]
        producer = graph.producer(name)
        if isinstance(value.storage, ops.Float) or producer is None:
            continue
        inner = graph.fresh(name)
        graph.add_value(inner, value.dtype, value.shape, storage=value.storage, holds=name)
        graph.set_outputs(producer, [inner if output == name else output for output in producer.outputs])
        graph.replace_uses(name, inner)
        levels = as_float(graph, inner, producer)
        made = graph.producer(levels)
        assert made is not None
        if value.dtype == "float32":
            value.storage = ops.Float()
            graph.set_outputs(made, [graph.outputs[index]])
            continue
        assert isinstance(value.storage, ops.Codes)
        zero = value.storage.zero_point - (128 if value.dtype == "int8" else 0)
        moved = graph.emit("Add", [levels, graph.constant(ops.constant(zero))], value.shape, name, producer)
        value.storage = ops.Float()
        to = {"uint8": 2, "int8": 3}[value.dtype]
        graph.add(Node("Cast", [moved], [name], {"to": to}, producer.name))
