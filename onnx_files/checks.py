"""What makes an ONNX model one that can be worked on, whoever wrote it: checked once, when it is loaded.

Each check raises ModelError. They are in the order in which they run: those that are cheap and limit the others first.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from math import prod

import onnx
import onnx.checker

from subbyte.dialect.function_calls import STANDARD_DOMAINS, expanded, opset_of
from subbyte.dialect.known_operators import full_name
from subbyte.dialect.payloads import tensor_bytes, tensor_values, without_payloads
from subbyte.dialect.walk import all_nodes, every_node, every_tensor, label_of
from subbyte.errors import ModelError, one_line
from subbyte.files import limits
from subbyte.onnx_files.attributes import check_attributes

NEWEST_OPSET = onnx.defs.onnx_opset_version()  # of the installed onnx, whose schemas give shapes and bodies
MOST_AXES = 32  # that every NumPy can hold
OLDEST_OPSET = 13  # that compile knows; older files are converted


def check_content(model: onnx.ModelProto) -> None:
    """All that can be said before external data are there."""
    if not model.graph.node:
        raise ModelError("the graph has no nodes: an empty or truncated file; export it again")
    if not model.graph.output:
        raise ModelError("the graph has no outputs, so it would compute nothing; export it with its results as outputs")
    _check_text(model)
    _check_opset(model)
    _check_count(model)
    _check_operators(model)
    check_attributes(model)
    _check_sizes(model)


def check_graph(model: onnx.ModelProto) -> None:
    """That the model, with its data, is valid ONNX; its nodes are sorted, in place."""
    for tensor in every_tensor(model):
        _check_data(tensor)
    _check_names(model.graph)
    _sort(model.graph)
    try:
        onnx.checker.check_model(without_payloads(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"not valid ONNX: {one_line(error).rstrip('.')}. Export the model again") from error


def unknown_operators(nodes: Sequence[onnx.NodeProto], what: str, known: Iterable[str]) -> ModelError:
    """The error for operators that nobody knows: `what` they are, each with its first node, and the nearest name."""
    kinds: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        kinds.setdefault(full_name(node), []).append(node)
    found = [
        f"{kind} (node '{label_of(of_kind[0])}'" + (f" and {len(of_kind) - 1} more)" if len(of_kind) > 1 else ")")
        for kind, of_kind in kinds.items()
    ]
    near = difflib.get_close_matches(next(iter(kinds)), sorted(known), n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ModelError(
        f"{what} {', '.join(found)}.{hint} Export with standard ONNX operators, or give each of these operators a body "
        "as a model-local function"
    )


def _check_text(model: onnx.ModelProto) -> None:
    """Every name is text that C and JSON can hold."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    places: list[tuple[str, Iterable[str]]] = [
        ("the graph's name", [graph.name]),
        ("a name of an input, output or initializer", [value.name for value in values]),
        ("the metadata", [text for entry in model.metadata_props for text in (entry.key, entry.value)]),
        ("a function's name", [text for function in model.functions for text in (function.domain, function.name)]),
    ]
    for index, node in enumerate(every_node(model)):
        places.append((f"a name of node {index}", (node.name, node.op_type, node.domain, *node.input, *node.output)))
    for place, texts in places:
        for text in texts:
            if isinstance(text, bytes):  # protobuf hands out what is not UTF-8 as it is
                raise ModelError(f"{place} is not UTF-8: {text!r}; rename it, or export the model again")
            if "\0" in text:
                raise ModelError(f"{place} holds a NUL character: {text!r}; rename it, or export the model again")


def _check_opset(model: onnx.ModelProto) -> None:
    opset = opset_of(model.opset_import)
    if opset > NEWEST_OPSET:
        raise ModelError(
            f"the model is in opset {opset}; opsets up to {NEWEST_OPSET} are known to the installed onnx "
            f"{onnx.__version__}. Export with an opset from {OLDEST_OPSET} to {NEWEST_OPSET}"
        )


def _check_count(model: onnx.ModelProto) -> None:
    listed = sum(1 for _ in every_node(model))
    if listed > limits.NODES:
        raise ModelError(f"the file has {listed} nodes, at most {limits.NODES} are accepted; split the model")
    nodes, nbytes = expanded(model)
    if nodes > limits.NODES or nbytes > limits.ONNX_BYTES:
        size = f"{nodes} nodes" if nodes > limits.NODES else f"{nbytes} bytes"
        most = f"{limits.NODES}" if nodes > limits.NODES else f"{limits.ONNX_BYTES}"
        raise ModelError(
            f"with its functions in the place of their calls the file has {size}, at most {most} are accepted; export "
            "it without functions that call one another so often"
        )


def _check_operators(model: onnx.ModelProto) -> None:
    """Every operator of ONNX's own domain exists."""
    bodies = [(model.graph.node, model.opset_import), *((body.node, body.opset_import) for body in model.functions)]
    for nodes, imports in bodies:
        opset = opset_of(imports)
        standard = (node for node in all_nodes(nodes) if node.domain in STANDARD_DOMAINS)
        unknown = [node for node in standard if not onnx.defs.has(node.op_type, opset, "")]
        if unknown:
            names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
            raise unknown_operators(unknown, f"opset {opset} of ONNX has no operator", names)


def _check_sizes(model: onnx.ModelProto) -> None:
    """No tensor of the file, and no input, has more elements than a tensor may have."""
    for tensor in every_tensor(model):
        _check_shape(f"tensor '{tensor.name}'", tensor.dims)
        if tensor_bytes(tensor) > limits.TENSOR_BYTES:
            raise ModelError(
                f"tensor '{tensor.name}' of shape {list(tensor.dims)} takes {tensor_bytes(tensor)} bytes, at most "
                f"{limits.TENSOR_BYTES} are accepted; split it"
            )
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            _check_shape(f"input '{value.name}'", [dim.dim_value for dim in dims])


def _check_shape(what: str, shape: Iterable[int]) -> None:
    shape = list(shape)
    if min(shape, default=0) < 0:
        raise ModelError(f"{what} has shape {shape}: sizes are 0 or more; the file is damaged, export it again")
    if prod(shape) > limits.ELEMENTS:
        raise ModelError(
            f"{what} of shape {shape} has {prod(shape)} elements, at most {limits.ELEMENTS} are accepted; make it "
            "smaller"
        )


def _check_data(tensor: onnx.TensorProto) -> None:
    """The data are as long as the shape says, and NumPy can hold them."""
    if len(tensor.dims) > MOST_AXES:
        raise ModelError(
            f"tensor '{tensor.name}' has {len(tensor.dims)} axes, at most {MOST_AXES} are read; reshape it"
        )
    if tensor.HasField("raw_data"):
        held, wanted, what = len(tensor.raw_data), tensor_bytes(tensor), "bytes"
    else:
        field = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
        held, wanted, what = len(field), tensor_values(tensor), "values"
    if held != wanted:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} takes {wanted} {what} and holds {held}; the file is "
            "damaged, export it again"
        )


def _check_names(graph: onnx.GraphProto) -> None:
    """Every input of every node is made by something."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        made.update(node.output)
    for node in graph.node:
        for name in node.input:
            if name and name not in made:
                raise ModelError(
                    f"node '{label_of(node)}' reads '{name}', which is not an input, an initializer or output of a "
                    "node; the file lacks an initializer"
                )
    for output in graph.output:
        if output.name not in made:
            raise ModelError(f"the graph's output '{output.name}' is made by no node")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node needs: its inputs, and what its subgraphs take from around them."""
    for inner in all_nodes([node]):
        yield from inner.input


def _sort(graph: onnx.GraphProto) -> None:
    """Nodes in topological order, in place; raises ModelError on a cycle."""
    producer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name:
                if name in producer:
                    raise ModelError(f"value '{name}' is made by two nodes")
                producer[name] = index
    waiting = [{producer[name] for name in _reads(node) if name in producer} for node in graph.node]
    users: list[list[int]] = [[] for _ in waiting]
    for index, parents in enumerate(waiting):
        for parent in parents:
            users[parent].append(index)
    ready = [index for index, parents in enumerate(waiting) if not parents]
    ordered: list[int] = []
    while ready:
        index = heapq.heappop(ready)  # the file's own order where it is sorted
        ordered.append(index)
        for user in users[index]:
            waiting[user].discard(index)
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(ordered) < len(waiting):
        at = next(index for index, parents in enumerate(waiting) if parents)
        seen: set[int] = set()
        while at not in seen:  # each waiting node is on a cycle or depends on one
            seen.add(at)
            at = min(waiting[at])
        raise ModelError(
            f"the graph has a cycle through node '{label_of(graph.node[at])}'; ONNX allows none, export it again"
        )
    if ordered != sorted(ordered):
        nodes = [graph.node[index] for index in ordered]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
