"""Standard operators that TVM lacks, or computes in part only, by the body that their ONNX schema gives.

The body is read as the file itself is: shapes are inferred, shape arithmetic folds away, and the rewrite table sees the
rest, so that an Attention becomes products and a Softmax with kernels.
"""

from __future__ import annotations

from subbyte.errors import CompileError
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.interpret import node_proto
from subbyte.tvm_kernels.onnx_model import body_of
from subbyte.tvm_kernels.read_graph import CONTROL_FLOW, RANDOM, add_body, type_of


def expand(graph: Graph) -> bool:
    """Put bodies in the place of what TVM does not compute; whether there was any.

    Raises CompileError for a node that neither a kernel, nor TVM, nor a body computes, and for unrounded types.
    """
    from subbyte.tvm_kernels.relax_limits import beyond, has_body, refuse_unrounded

    expanded = False
    for node in graph.order():
        refuse_unrounded(graph, node)
        reason = "" if node.operator is not None or node.op == "View" else beyond(graph, node)
        if reason and has_body(node) and _put_body(graph, node):
            expanded = True
        elif reason:
            declined = "".join(f"; no '{rule}', as {why}" for rule, why in node.declined.items())
            operator = f"{node.domain}.{node.op}" if node.domain else node.op
            raise CompileError(f"'{node.name}' ({operator}): {reason}{declined}. Replace the operator in the model")
    graph.prune()
    return expanded


def _put_body(graph: Graph, node: Node) -> bool:
    """The body of the node's schema in its place, or False where it has none."""
    proto = node_proto(node)
    body = body_of(proto, {name: type_of(graph.values[name]) for name in node.inputs if name}, graph.opset)
    if not body or {inner.op_type for inner in body} & (CONTROL_FLOW | RANDOM):
        return False
    was = {name: (graph.values[name].dtype, graph.values[name].shape) for name in node.outputs if name}
    graph.remove(node)
    add_body(graph, proto, node.name, body)
    for name, kind in was.items():
        value = graph.values[name]
        if (value.dtype, value.shape) != kind:
            raise CompileError(
                f"'{node.name}' ({node.op}): its body gives {value.dtype} {list(value.shape)} for '{name}', its schema "
                f"{kind[0]} {list(kind[1])}; replace the operator in the model"
            )
    return True
