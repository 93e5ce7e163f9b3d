"""Moves of axes, once every value has its layout: those of the file and those that layout put in.

Transpose that moves no element (but axes of one)   ->  View
Transpose of floats or codes                        ->  Permute
"""

from __future__ import annotations

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.rewrites.code_values import packed
from subbyte.tvm_kernels.rewrites.geometry import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import EVERY, Any, Op, Outcome, Rule, rule


def _perm(graph: Graph, node: Node) -> list[int]:
    rank = len(graph.values[node.inputs[0]].shape)
    return [int(axis) for axis in node.attributes.get("perm", range(rank)[::-1])]


def view(graph: Graph, node: Node, x: str) -> Outcome:
    """The same bytes: the axes longer than 1 keep their order."""
    shape = graph.values[x].memory_shape
    long = [axis for axis in _perm(graph, node) if shape[axis] > 1]
    if graph.values[x].bits is not None:
        return packed(x)
    if long != sorted(long):
        return "it moves elements"
    graph.replace_node(node, Node("View", [x], node.outputs, {}, node.name, INTERNAL))
    return True


def permute(graph: Graph, node: Node, x: str) -> Outcome:
    value = graph.values[x]
    dtype = value.memory_dtype
    if value.bits is not None:
        return packed(x)
    if dtype != "float32" and dtype != "uint8":
        return f"'{x}' is {dtype}; handled: float32, codes"
    operator = ops.Permute(node.name, value.memory_shape, tuple(_perm(graph, node)), dtype)  # type: ignore[arg-type]
    kernel_node(graph, node, operator, [x], None, "as-is")
    return True


RULES: list[Rule] = [
    rule("transpose that moves nothing", Op("Transpose", Any("x"), dtypes=EVERY, attributes=("perm",)), to=view),
    rule("transpose", Op("Transpose", Any("x"), dtypes=EVERY, attributes=("perm",)), to=permute),
]
