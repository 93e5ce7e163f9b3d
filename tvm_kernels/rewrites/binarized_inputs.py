"""Fuses quantizers to bits into the product that reads them, after kernels can be chosen: one pass instead of two.

Elementwise to bits -> Product of Bits   ->   Product of Binarized

The bits stay a value of the graph, which the kernel stores: `check` and `trace` can compare them as before.
"""

from __future__ import annotations

from dataclasses import replace

from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import KERNEL
from subbyte.tvm_kernels.kernels.registry import choose


def into_products(graph: Graph, features: frozenset[str]) -> None:
    """Fuse quantizers into products that alone read their bits, where a kernel row for both is preferred."""
    for node in graph.order():
        operator = node.operator
        if not isinstance(operator, ops.Elementwise) or operator.epilogue.steps or len(node.outputs) > 1:
            continue
        (store,), (bits,) = operator.epilogue.stores, node.outputs
        users = graph.users(bits)
        if not isinstance(store, ops.ToBits) or bits in graph.outputs or len(users) != 1:
            continue
        (user,) = users
        if isinstance(user.operator, ops.Product):
            joined = replace(user.operator, left=ops.Binarized(store))
            if _preferred(joined, user.operator, features):
                _join(graph, node, user, joined)


def _preferred(joined: ops.Operator, product: ops.Operator, features: frozenset[str]) -> bool:
    try:
        return choose(joined, features).kernel.prefer >= choose(product, features).kernel.prefer
    except CompileError:
        return False


def _join(graph: Graph, quantizer: Node, product: Node, operator: ops.Operator) -> None:
    inputs = [quantizer.inputs[0], *product.inputs[1:]]
    outputs = [*product.outputs, quantizer.outputs[0]]
    node = Node(operator.kind, inputs, outputs, {}, product.name, KERNEL, operator)
    node.axis, node.reads = product.axis, product.reads
    graph.remove(quantizer)
    graph.replace_node(product, node)
