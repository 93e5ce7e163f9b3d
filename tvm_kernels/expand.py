"""Replaces nodes by their bodies: operators that TVM does not compute, and dialect functions that no rule rewrites.

The body of an operator is in its ONNX schema or in recurrent.py, that of a function in `dialect/`.

The body is read as the file itself is: shapes are inferred, shape arithmetic folds away, and the rewrite table sees the
rest, so that an Attention becomes products and a Softmax with kernels.
"""

from __future__ import annotations

from subbyte.dialect.function import Function, find
from subbyte.dialect.names import DOMAIN
from subbyte.errors import CompileError
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.interpret import node_proto
from subbyte.tvm_kernels.onnx_model import body_of
from subbyte.tvm_kernels.read_graph import CONTROL_FLOW, RANDOM, add_body, type_of


def expand(graph: Graph) -> bool:
    """Replace nodes that TVM does not compute by their bodies; whether there was one.

    Raises CompileError for a node that neither a kernel, nor TVM, nor a body computes, and for unrounded types.
    """
    from subbyte.tvm_kernels.relax_limits import beyond, has_body, refuse_unrounded

    expanded = False
    for node in graph.order():
        refuse_unrounded(graph, node)
        reason = "" if node.operator is not None or node.op == "View" else beyond(graph, node)
        if reason and (has_body(node) or _function(node)) and _put_body(graph, node):
            expanded = True
            if node.domain == DOMAIN:
                why = node.and_declines("it has no kernel")
                graph.notes.append(
                    f"'{node.name}' ({DOMAIN}.{node.op}) is computed by its body in standard operators: {why}"
                )
            if graph.explanation is not None:
                graph.explanation.replaced(graph, node, reason)
        elif reason:
            operator = f"{node.domain}.{node.op}" if node.domain else node.op
            why = node.and_declines(reason)
            raise CompileError(f"'{node.name}' ({operator}): {why}. Replace the operator in the model")
    graph.prune()
    return expanded


def _put_body(graph: Graph, node: Node) -> bool:
    """Replace a node by its body; False if it has none."""
    function, own = _function(node), (*node.inputs, *node.outputs)
    if function is not None:
        body, names = list(function.proto.node), (*function.proto.input, *function.proto.output)
    else:
        types = {name: type_of(graph.values[name]) for name in node.inputs if name}
        body, names = body_of(node_proto(node), types, graph.opset), own
    if not body or {inner.op_type for inner in body} & (CONTROL_FLOW | RANDOM):
        return False
    was = {name: (graph.values[name].dtype, graph.values[name].shape) for name in node.outputs if name}
    graph.remove(node)
    add_body(graph, node.name, body, {name: value for name, value in zip(names, own, strict=False) if value})
    for name, kind in was.items():
        value = graph.values[name]
        if (value.dtype, value.shape) != kind:
            raise CompileError(
                f"'{node.name}' ({node.op}): its body gives {value.dtype} {list(value.shape)} for '{name}', its schema "
                f"{kind[0]} {list(kind[1])}; replace the operator in the model"
            )
    return True


def _function(node: Node) -> Function | None:
    return find(node.op) if node.domain == DOMAIN else None
