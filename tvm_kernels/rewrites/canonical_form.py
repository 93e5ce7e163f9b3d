"""The canonical form: one pattern for each computation that exporters write in several ways.

Biases become `Add`, batch norm `Mul` and `Add`, reshapes of every kind one `View`; GELU, SiLU and layer norm written as
several nodes become one operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.memory import ALIGNMENT
from subbyte.tvm_kernels.rewrites.code_values import VIEWS
from subbyte.tvm_kernels.rewrites.geometry import over_axes
from subbyte.tvm_kernels.rewrites.pattern import EVERY, LEVELS, WINDOW, Any, Const, Near, Op, Outcome, Rule, rule


def after(graph: Graph, node: Node, op: str, operand: str) -> Node:
    """Insert `op(output of node, operand)` after a node; returns the new node."""
    output = node.outputs[0]
    middle = graph.fresh(output)
    graph.add_value(middle, "float32", graph.values[output].shape)
    graph.set_outputs(node, [middle])
    return graph.add(Node(op, [middle, operand], [output], {}, node.name))


def channels_on_axis_1(values: Array, rank: int) -> Array:
    return np.asarray(values, np.float32).reshape(1, -1, *([1] * (rank - 2)))


# ---- identities ----


def skip(graph: Graph, node: Node, x: str) -> Outcome:
    """Remove a node whose output is its input: its users read the input."""
    source, target = graph.values[x], graph.values[node.outputs[0]]
    if source.dtype != target.dtype:
        return f"it makes {target.dtype} of {source.dtype}"
    if target.name in graph.outputs:
        return f"'{target.name}' is an output of the model"
    graph.replace_uses(node.outputs[0], x)
    graph.remove(node)
    return True


def dropout(graph: Graph, node: Node, x: str) -> Outcome:
    """Dropout at inference is the identity."""
    training = graph.constant_of(node.given(2)) if node.given(2) else np.array(False)
    if training is None or training.any():
        return "it is in training mode, where its result is random"
    return skip(graph, node, x)


def view(graph: Graph, node: Node, x: str) -> Outcome:
    """Reshape, Flatten, Squeeze and Unsqueeze: the same bytes with another shape."""
    if graph.values[x].shape == graph.values[node.outputs[0]].shape and skip(graph, node, x) is True:
        return True
    graph.replace_node(node, Node("View", [x], node.outputs, {}, node.name, INTERNAL))
    return True


def view_of_view(graph: Graph, node: Node, x: str) -> Outcome:
    source, middle, target = (graph.values[name] for name in (x, node.inputs[0], node.outputs[0]))
    same = (source.dtype, source.storage) == (middle.dtype, middle.storage)
    if not same and not target.coded:
        return f"'{x}' and '{middle.name}' are the same bytes, but not the same values"
    graph.set_inputs(node, [x])
    return True


def part(graph: Graph, node: Node, x: str, **_: object) -> Outcome:
    """Gather of one index, or Slice of step 1, along the first axis longer than 1: a contiguous part of the bytes."""
    value, output = graph.values[x], graph.values[node.outputs[0]]
    if x in graph.inputs or value.coded:
        return f"'{x}' is {'stored as codes' if value.coded else 'an input of the model'}"
    chosen = _first_along_axis(graph, node)
    if isinstance(chosen, str):
        return chosen
    axis, first = chosen[0] % len(value.shape), chosen[1]
    if any(size != 1 for size in value.shape[:axis]):
        return f"its axis {axis} is not the first longer than 1 of {list(value.shape)}, so that its elements are apart"
    length = int(np.prod(value.shape[axis + 1 :], dtype=np.int64))
    first = max(0, first + value.shape[axis] if first < 0 else first)  # a Slice may begin before the first
    start = first * length
    if start + output.size > value.size:
        return f"it begins at {first}, beyond the {value.shape[axis]} elements of its axis"
    if (byte := start * np.dtype(value.dtype).itemsize) % ALIGNMENT:
        return f"it begins at byte {byte} of '{x}'; handled: multiples of {ALIGNMENT}"
    graph.replace_node(node, Node("Part", [x], node.outputs, {"start": start}, node.name, INTERNAL))
    return True


def _first_along_axis(graph: Graph, node: Node) -> tuple[int, int] | str:
    """Axis and first index of a Gather of one index or a Slice; or the reason why it is not a part along one axis."""
    if node.op == "Gather":
        index = graph.values[node.inputs[1]].data
        if index is None or index.size != 1:
            return "it takes more than one index"
        return int(node.attributes.get("axis", 0)), int(index.reshape(-1)[0])
    arguments = [graph.constant_of(name) if name else None for name in node.inputs[1:5]]
    starts, ends, axes, steps = (arguments + [None] * 4)[:4]
    if starts is None or ends is None or axes is None:
        return "its starts, ends and axes are not all constants"
    if axes.size != 1 or (steps is not None and (steps != 1).any()):
        return f"it slices {axes.size} axes; handled: one" if axes.size != 1 else "its step is not 1"
    return int(axes.reshape(-1)[0]), int(starts.reshape(-1)[0])


# ---- biases, batch norm ----


def conv_bias(graph: Graph, node: Node, bias: Array, **_: object) -> Outcome:
    rank = len(graph.values[node.outputs[0]].shape)
    graph.set_inputs(node, node.inputs[:2])
    after(graph, node, "Add", graph.constant(channels_on_axis_1(bias, rank)))
    return True


def auto_pad(graph: Graph, node: Node, **_: object) -> Outcome:
    """auto_pad SAME and VALID as explicit pads; all other attributes become explicit, too."""
    attributes = node.attributes
    x, y = graph.values[node.inputs[0]].shape, graph.values[node.outputs[0]].shape
    rank = len(x) - 2
    if attributes.get("explicit"):
        return None
    if rank not in (1, 2):
        return over_axes(x)
    kernel = attributes.get("kernel_shape") or graph.values[node.inputs[1]].shape[2:]
    stride, dilation = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    pads = list(attributes.get("pads", [0] * 2 * rank))
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = [0] * 2 * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilation[axis] + 1
            total = max(0, (y[axis + 2] - 1) * stride[axis] + reach - x[axis + 2])
            small, large = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (small, large) if mode == "SAME_UPPER" else (large, small)
    written = {"kernel_shape": list(kernel), "strides": list(stride), "dilations": list(dilation), "pads": pads}
    node.attributes = {**attributes, **written, "auto_pad": "NOTSET", "explicit": 1}
    return True


def gemm(graph: Graph, node: Node, x: str, **_: object) -> Outcome:
    """alpha A B + beta C as Transpose, MatMul, Mul and Add."""
    attributes = node.attributes
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    right = node.inputs[1]
    if attributes.get("transA", 0):
        x = _turned(graph, node, x)
    if attributes.get("transB", 0):
        right = _turned(graph, node, right)
    steps = [("Mul", graph.constant(ops.constant(alpha)))] if alpha != 1 else []
    if node.given(2) and beta != 0:
        steps.append(("Add", _times(graph, node, node.inputs[2], beta)))
    made = Node("MatMul", [x, right], node.outputs, {}, node.name)
    graph.replace_node(node, made)
    for op, tensor in steps:
        made = after(graph, made, op, tensor)
    return True


def _turned(graph: Graph, node: Node, name: str) -> str:
    """A transposed matrix; a constant is transposed here."""
    value = graph.values[name]
    shape = value.shape[::-1]
    if not value.is_constant:
        return graph.emit("Transpose", [name], shape, name, node, attributes={"perm": [1, 0]})
    if value.weight is not None:
        return graph.weight(value.weight, value.order[::-1], value.scaled, name)
    assert value.data is not None
    return graph.constant(np.ascontiguousarray(value.data.T), name)


def _times(graph: Graph, node: Node, name: str, factor: float) -> str:
    value = graph.values[name]
    if factor == 1:
        return name
    if value.data is not None:
        return graph.constant(np.asarray(value.data * np.float32(factor), np.float32), name)
    return graph.emit("Mul", [name, graph.constant(ops.constant(factor))], value.shape, name, node)


def batch_norm(graph: Graph, node: Node, x: str, gamma: Array, beta: Array, mean: Array, variance: Array) -> Outcome:
    """y = x * s + t with s = gamma / sqrt(variance + epsilon), in float64 and rounded once."""
    epsilon = node.attributes.get("epsilon", 1e-5)
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shift = beta.astype(np.float64) - mean.astype(np.float64) * scale
    shape = graph.values[x].shape
    factor, bias = (graph.constant(channels_on_axis_1(values, len(shape))) for values in (scale, shift))
    scaled = graph.emit("Mul", [x, factor], shape, node.outputs[0], node)
    graph.replace_node(node, Node("Add", [scaled, bias], node.outputs, {}, node.name))
    return True


# ---- activations and norms written as several nodes ----


def becomes(op: str, domain: str = "") -> Callable[..., Outcome]:
    """A rewrite that replaces the node by `op(x)`."""

    def to(graph: Graph, node: Node, x: str) -> Outcome:
        graph.replace_node(node, Node(op, [x], node.outputs, {}, node.name, domain))
        return True

    return to


def layer_norm(
    graph: Graph, node: Node, x: str, epsilon: Array, exponent: Array, mean: Node, variance: Node
) -> Outcome:
    """(x - mean) / sqrt(variance + epsilon) over the last axis; gamma and beta follow as Mul and Add."""
    shape = graph.values[x].shape
    if not all(_axes(graph, reduction) == [len(shape) - 1] for reduction in (mean, variance)):
        return "its mean and variance are not over the last axis alone"
    if exponent.size != 1 or exponent.reshape(-1)[0] != 2 or epsilon.size != 1:
        return "it squares by an exponent that is not 2, or its epsilon is not a scalar"
    one, zero = graph.constant(np.ones(shape[-1], np.float32)), graph.constant(np.zeros(shape[-1], np.float32))
    attributes = {"axis": -1, "epsilon": float(epsilon.reshape(-1)[0])}
    graph.replace_node(node, Node("LayerNormalization", [x, one, zero], node.outputs, attributes, node.name))
    return True


def _axes(graph: Graph, reduction: Node) -> list[int]:
    """The axes of a ReduceMean, ascending; all of them is an empty list."""
    rank = len(graph.values[reduction.inputs[0]].shape)
    axes = reduction.attributes.get("axes")
    if axes is None:
        axes = graph.constant_of(reduction.given(1))
    return [] if axes is None else sorted(int(axis) % rank for axis in np.reshape(axes, -1))


def global_pool(op: str) -> Callable[..., Outcome]:
    """A rewrite of a reduction of the spatial axes: `op`, and a view of its result."""

    def to(graph: Graph, node: Node, **_: object) -> Outcome:
        x = node.inputs[0]
        shape, axes = graph.values[x].shape, _axes(graph, node)
        if len(shape) not in (3, 4) or axes != list(range(2, len(shape))):
            over = f"axes {axes}" if axes else "all axes"
            return f"it reduces {over} of {list(shape)}; handled: all but the first two, of 3 or 4"
        pooled = graph.emit(op, [x], (*shape[:2], *([1] * (len(shape) - 2))), node.outputs[0], node)
        graph.replace_node(node, Node("View", [pooled], node.outputs, {}, node.name, INTERNAL))
        return True

    return to


GEMM = ("alpha", "beta", "transA", "transB")
_VIEW = Op("View", Any("x"), domain=INTERNAL, dtypes=EVERY)
_HALF_ERF = Op("Add", Op("Erf", Op("Div", Any("x"), Near(math.sqrt(2)))), Near(1.0))
_HALF_ERF_MUL = Op("Add", Op("Erf", Op("Mul", Any("x"), Near(math.sqrt(0.5)))), Near(1.0))
_CENTRED = Op("Sub", Any("x"), Op("ReduceMean", Any("x"), key="mean", rest=True, attributes=("axes",)))
_SQUARE = Op("Pow", _CENTRED, Const("exponent"))
_VARIANCE = Op("ReduceMean", _SQUARE, key="variance", rest=True, attributes=("axes",))

# Applied before RULES, which would replace the mean over the last of three axes by a pool.
NORMS: list[Rule] = [
    rule("layer norm", Op("Div", _CENTRED, Op("Sqrt", Op("Add", _VARIANCE, Const("epsilon")))), to=layer_norm),
]

RULES: list[Rule] = [
    # ---- identities ----
    rule("identity", Op("Identity", Any("x"), dtypes=EVERY), to=skip),
    rule("dropout", Op("Dropout", Any("x"), rest=True, dtypes=EVERY, attributes=("ratio", "seed")), to=dropout),
    rule("cast to itself", Op("Cast", Any("x"), dtypes=EVERY, attributes=EVERY), to=skip),
    *[rule("view", Op(op, Any("x"), rest=True, dtypes=EVERY, attributes=EVERY), to=view) for op in VIEWS],
    rule("view of a view", Op("View", _VIEW, domain=INTERNAL, dtypes=EVERY), to=view_of_view),
    rule("part", Op("Gather", Any("x"), Const("index"), dtypes=EVERY, attributes=("axis",)), to=part),
    rule("part", Op("Slice", Any("x"), rest=True, dtypes=EVERY), to=part),
    # ---- biases, batch norm, windows ----
    *[
        rule("window", Op(op, Any("x"), rest=True, dtypes=EVERY, attributes=EVERY, outputs=EVERY), to=auto_pad)
        for op in ("Conv", "MaxPool", "AveragePool")
    ],
    rule(
        "convolution's bias",
        Op("Conv", Any("x"), Any("w", constants=True), Const("bias"), dtypes=LEVELS, attributes=WINDOW),
        to=conv_bias,
    ),
    rule(
        "Gemm",
        Op("Gemm", Any("x"), Any("w", constants=True), rest=True, dtypes=LEVELS, attributes=GEMM),
        to=gemm,
    ),
    rule(
        "batch norm",
        Op(
            "BatchNormalization",
            *(Any("x"), Const("gamma"), Const("beta"), Const("mean"), Const("variance")),
            dtypes=LEVELS,
            attributes=("epsilon", "momentum"),
        ),
        to=batch_norm,
    ),
    rule(
        "global mean",
        Op("ReduceMean", Any("x"), rest=True, dtypes=LEVELS, attributes=("axes", "keepdims")),
        to=global_pool("GlobalAveragePool"),
    ),
    # ---- activations written as several nodes ----
    rule("GELU, x (1 + erf) / 2", Op("Mul", Op("Mul", Any("x"), _HALF_ERF), Near(0.5)), to=becomes("Gelu")),
    rule("GELU, x (1 + erf) / 2", Op("Mul", Op("Mul", Any("x"), _HALF_ERF_MUL), Near(0.5)), to=becomes("Gelu")),
    rule("GELU, (x / 2) (1 + erf)", Op("Mul", Op("Mul", Any("x"), Near(0.5)), _HALF_ERF), to=becomes("Gelu")),
    rule("GELU, (x / 2) (1 + erf)", Op("Mul", Op("Mul", Any("x"), Near(0.5)), _HALF_ERF_MUL), to=becomes("Gelu")),
    rule("GELU of com.microsoft", Op("Gelu", Any("x"), domain="com.microsoft"), to=becomes("Gelu")),
    rule("SiLU", Op("Mul", Any("x"), Op("Sigmoid", Any("x"))), to=becomes("Silu", INTERNAL)),
]
