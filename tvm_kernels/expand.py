"""Standard operators that TVM lacks, or computes in part only, by the body that their ONNX schema gives.

The body is read as the file itself is: shapes are inferred, shape arithmetic folds away, and the rewrite table sees the
rest, so that an Attention becomes products and a Softmax with kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx.defs
import onnx.helper

from subbyte.errors import CompileError
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.interpret import node_proto
from subbyte.tvm_kernels.onnx_model import inline_standard_functions
from subbyte.tvm_kernels.read_graph import CONTROL_FLOW, RANDOM, read_node, type_of
from subbyte.tvm_kernels.rewrites.pattern import defaults_of


def expand(graph: Graph) -> bool:
    """Put bodies in the place of what TVM does not compute; whether there was any.

    Raises CompileError for a node that neither a kernel, nor TVM, nor a body computes.
    """
    from subbyte.tvm_kernels.relax_limits import beyond

    expanded = False
    for node in graph.order():
        reason = "" if node.operator is not None or node.op == "View" else beyond(graph, node)
        if reason and not node.domain and _put_body(graph, node):
            expanded = True
        elif reason:
            declined = "".join(f"; no '{rule}', as {why}" for rule, why in node.declined.items())
            operator = f"{node.domain}.{node.op}" if node.domain else node.op
            raise CompileError(f"'{node.name}' ({operator}): {reason}{declined}. Replace the operator in the model")
    graph.prune()
    return expanded


def _put_body(graph: Graph, node: Node) -> bool:
    """The body of the node's schema in its place, or False where it has none."""
    schema = onnx.defs.get_schema(node.op, graph.opset, "") if onnx.defs.has(node.op, graph.opset, "") else None
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return False
    values = {name: graph.values[name] for name in (*node.inputs, *node.outputs) if name}
    infos = {name: onnx.helper.make_value_info(name, type_of(value)) for name, value in values.items()}
    # A body refers to attributes; those that the node leaves out have to be there.
    proto = node_proto(replace(node, attributes={**defaults_of(node.op, graph.opset), **node.attributes}))
    outputs = [infos[name] for name in node.outputs if name]
    inputs = [infos[name] for name in dict.fromkeys(node.inputs) if name]
    if "" in node.inputs:  # the inliner asks for the type of inputs that are left out, too
        inputs.append(onnx.helper.make_value_info("", onnx.helper.make_tensor_type_proto(1, [])))
    opsets = [onnx.helper.make_opsetid("", graph.opset)]
    model = onnx.helper.make_model(onnx.helper.make_graph([proto], "one_node", inputs, outputs), opset_imports=opsets)
    try:
        body = inline_standard_functions(model, [node.op]).graph.node
    except Exception:  # a body that this opset or these types have not
        return False
    kinds = {inner.op_type for inner in body}
    if node.op in kinds or kinds & (CONTROL_FLOW | RANDOM):
        return False
    _rename(graph, node, body)
    was = {name: (value.dtype, value.shape) for name, value in values.items() if name in node.outputs}
    graph.remove(node)
    for inner in body:
        read_node(graph, inner, model)
    for name, kind in was.items():
        value = graph.values[name]
        if (value.dtype, value.shape) != kind:
            raise CompileError(
                f"'{node.name}' ({node.op}): its body gives {value.dtype} {list(value.shape)} for '{name}', its schema "
                f"{kind[0]} {list(kind[1])}; replace the operator in the model"
            )
    return True


def _rename(graph: Graph, node: Node, body: Sequence[onnx.NodeProto]) -> None:
    """Values inside of the body get names that the graph has not; its nodes are called after the node."""
    names = {name: name for name in (*node.inputs, *node.outputs)}
    for inner in body:
        for index, name in enumerate(inner.output):
            if name and name not in names:
                names[name] = graph.fresh(f"{node.name}/{name}")
            inner.output[index] = names[name] if name else ""
        inner.name = node.name
    for inner in body:
        for index, name in enumerate(inner.input):
            inner.input[index] = names[name] if name else ""
