"""For several rules: the creation of nodes with a kernel."""

from __future__ import annotations

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import KERNEL


def kernel_node(
    graph: Graph, node: Node, operator: ops.Operator, inputs: list[str], axis: int | None, reads: str
) -> Node:
    """Replace an ONNX node by a node with `operator`, which produces the same values."""
    made = Node(operator.kind, inputs, node.outputs, {}, node.name, KERNEL, operator)
    made.axis, made.reads = axis, reads
    made.fallback, made.declined = node.fallback, node.declined
    graph.replace_node(node, made)
    return made
