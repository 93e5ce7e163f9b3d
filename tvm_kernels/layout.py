"""Layouts of values: kernels compute channels last (NHWC), where ONNX has NCHW or NCL.

`Node.reads` is the layout that a kernel reads: NHWC, as-is, or "same" for elementwise kernels, which support both. ONNX
nodes without a kernel read and write as-is. Where layouts differ a `Transpose` is inserted, at most one for a value; it
is a view if there is one channel or one pixel, and constants are transposed here. Reshapes and transposes of the file
that only permute the channel axis become views of the other layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node, Shape, Value, epilogue_of
from subbyte.tvm_kernels.internal_operators import INTERNAL

NHWC, AS_IS = "NHWC", "as-is"


def assign(graph: Graph) -> None:
    """Set the layout of every value, insert transposes, and set the rows and channels of elementwise kernels."""
    converted: dict[tuple[str, str], str] = {}
    for node in graph.order():
        if node.operator is not None:
            _kernel(graph, node, converted)
        elif node.op == "View":
            _view(graph, node, converted)
        elif node.op == "UnpackBits":
            graph.values[node.outputs[0]].layout = graph.values[node.inputs[0]].layout
        elif node.op not in _DATA_MOVEMENT or not _DATA_MOVEMENT[node.op](graph, node, converted):
            graph.set_inputs(node, [convert(graph, name, AS_IS, converted) for name in node.inputs])
    _outputs(graph, converted)
    graph.prune()


def _has_channels(shape: Shape) -> bool:
    return len(shape) > 2


def _indifferent(value: Value) -> bool:
    """Whether both layouts are the same bytes."""
    return not _has_channels(value.shape) or value.shape[1] == 1 or int(np.prod(value.shape[2:])) == 1


def to_channels_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def to_channels_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def convert(graph: Graph, name: str, layout: str, converted: dict[tuple[str, str], str]) -> str:
    """The value in that layout: itself, a view, a transposed constant, or the output of a new Transpose."""
    if not name:
        return name
    value = graph.values[name]
    if value.layout == layout or not _has_channels(value.shape):
        return name
    if (name, layout) in converted:
        return converted[name, layout]
    other = graph.fresh(f"{name}:{layout}")
    rank = len(value.shape)
    made = graph.add_value(other, value.dtype, value.shape, storage=value.storage, layout=layout)
    made.holds = value.holds or name
    perm = to_channels_last(rank) if layout == NHWC else to_channels_first(rank)
    if value.data is not None:
        made.data = np.ascontiguousarray(np.transpose(value.data, perm))
    elif _indifferent(value) and value.bits is None:
        graph.add(Node("View", [name], [other], {}, other, INTERNAL))
    elif value.bits is not None:
        raise CompileError(f"the binary values '{name}' are needed in two layouts; this model cannot be compiled yet")
    else:
        graph.add(Node("Transpose", [name], [other], {"perm": perm}, f"{name}:{layout}"))
    converted[name, layout] = other
    return other


# ---- kernels ----


def _kernel(graph: Graph, node: Node, converted: dict[tuple[str, str], str]) -> None:
    assert node.operator is not None
    count = node.operator.inputs
    own, tensors = node.inputs[:count], node.inputs[count:]
    reads = node.reads
    if reads == "same":
        reads = _wanted(graph, node, graph.values[own[0]])
    inputs = [convert(graph, name, reads, converted) for name in own]
    # `axis` is the channel axis of the output; rank 2 has one layout only.
    writes = NHWC if (node.reads == "same" and reads == NHWC) or node.axis == 1 else AS_IS
    if node.reads == "same" and not _has_channels(graph.values[node.outputs[0]].shape):
        writes = AS_IS
    for name in node.outputs:
        if _has_channels(graph.values[name].shape):
            graph.values[name].layout = writes
    inputs += [_like_output(graph, name, node, writes, converted) for name in tensors]
    graph.set_inputs(node, inputs)
    _set_shape(graph, node)


def _like_output(graph: Graph, name: str, node: Node, writes: str, converted: dict[tuple[str, str], str]) -> str:
    epilogue = epilogue_of(node)
    steps = epilogue.steps if epilogue is not None else ()
    row_scale = any(isinstance(step, ops.RowScale) and step.tensor == name for step in steps)
    return name if row_scale else convert(graph, name, writes, converted)


def _wanted(graph: Graph, node: Node, value: Value) -> str:
    """The layout of an elementwise kernel: that of its channels, else that of its input."""
    if not _has_channels(value.shape):
        return AS_IS
    if node.axis is not None:
        return NHWC if node.axis == 1 else AS_IS
    return value.layout


def _set_shape(graph: Graph, node: Node) -> None:
    """Set the rows and channels of kernels that support any shape."""
    value = graph.values[node.outputs[0]]
    shape = value.memory_shape
    if value.bits is not None:
        shape = (*shape[:-1], value.bits.channels)
    channels = shape[-1] if shape else 1
    if node.operator is not None and node.reads == "same":
        node.operator = node.operator.resized(value.size // channels, channels)


# ---- views ----


def _view(graph: Graph, node: Node, converted: dict[tuple[str, str], str]) -> None:
    """A reshape of a channels-last value stays a view if it does not change batch and channels."""
    source, target = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    if source.bits is not None:
        raise CompileError(f"'{node.name}' reshapes binary values; put Binarize after the reshape")
    same_ends = source.shape[:2] == target.shape[:2] and len(target.shape) > 1
    if source.layout == NHWC and same_ends and _has_channels(target.shape):
        target.layout = NHWC
        return
    if source.layout == NHWC and _permute_users(graph, source, target):
        return
    graph.set_inputs(node, [convert(graph, node.inputs[0], AS_IS, converted)])


def _permute_users(graph: Graph, source: Value, target: Value) -> bool:
    """Flatten before matrix products needs no copy: their weights are permuted to the order of pixels in memory."""
    channels, pixels = source.shape[1], int(np.prod(source.shape[2:]))
    users = graph.users(target.name)
    products = [user.operator for user in users if isinstance(user.operator, ops.Product) and user.operator.inputs == 1]
    if (
        target.shape != (source.shape[0], channels * pixels)
        or target.name in graph.outputs
        or len(products) != len(users)
    ):
        return False
    if pixels == 1 or channels == 1 or any(user.inputs.index(target.name) != 0 for user in users):
        return False
    if not all(isinstance(p.geometry, ops.MatMul) and not p.group_size for p in products):
        return False
    for user, product in zip(users, products, strict=True):
        user.operator = _permuted(product, channels, pixels)
    maker = graph.producer(target.name)
    assert maker is not None
    maker.attributes["reordered"] = True
    return True


def _permuted(product: ops.Product[Any, Any], channels: int, pixels: int) -> ops.Product[Any, Any]:
    """The product with the columns of its weights from channel, pixel to pixel, channel."""
    right = product.right
    weight = right.values if isinstance(right, ops.FloatWeight) else right
    permuted = weight.reshape((weight.shape[0], channels, pixels)).transpose((0, 2, 1)).reshape(weight.shape)
    return replace(product, right=ops.FloatWeight(permuted) if isinstance(right, ops.FloatWeight) else permuted)


def _layout_transpose(graph: Graph, node: Node, converted: dict[tuple[str, str], str]) -> bool:
    """A Transpose of the file that puts the channels last (or first) is a view of the other layout."""
    source, target = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    rank = len(source.shape)
    perm = node.perm(rank)
    if rank < 3 or source.bits is not None:
        return False
    if source.layout == NHWC and perm == to_channels_last(rank):
        target.layout = AS_IS
    elif source.layout == AS_IS and perm == to_channels_first(rank) and not _indifferent(target):
        target.layout = NHWC
    else:
        return False
    node.op, node.domain, node.attributes = "View", INTERNAL, {}
    return True


def _concat(graph: Graph, node: Node, converted: dict[tuple[str, str], str]) -> bool:
    """Concat of channels-last values is channels-last, along the axis as permuted."""
    rank = len(graph.values[node.outputs[0]].shape)
    if not any(graph.values[name].layout == NHWC for name in node.inputs):
        return False
    graph.set_inputs(node, [convert(graph, name, NHWC, converted) for name in node.inputs])
    axis = int(node.attributes["axis"]) % rank
    node.attributes = {"axis": to_channels_last(rank).index(axis)}
    graph.values[node.outputs[0]].layout = NHWC
    return True


_DATA_MOVEMENT = {"Transpose": _layout_transpose, "Concat": _concat}


def _outputs(graph: Graph, converted: dict[tuple[str, str], str]) -> None:
    """The model's outputs are in the layout of ONNX, under their own names."""
    for name in graph.outputs:
        value = graph.values[name]
        maker = graph.producer(name)
        if value.layout == AS_IS or maker is None:
            continue
        inner = graph.fresh(name)
        graph.add_value(inner, value.dtype, value.shape, storage=value.storage, layout=value.layout)
        graph.values[inner].holds = name
        graph.set_outputs(maker, [inner if output == name else output for output in maker.outputs])
        graph.replace_uses(name, inner)
        value.layout = AS_IS
        made = graph.producer(convert(graph, inner, AS_IS, converted))
        assert made is not None
        graph.set_outputs(made, [name])
