"""Elementwise operators are fused into the kernel before them, in the order of the file, or become their own kernel.

A step is fused if nothing else reads the value before it. A quantizer is always fused: the kernel then has several
outputs, and activations stay integers between layers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subbyte.dialect.binarize import Binarize
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape, epilogue_of, set_epilogue
from subbyte.tvm_kernels.internal_operators import INTERNAL, KERNEL
from subbyte.tvm_kernels.rewrites.pattern import Any, Const, Op, Outcome, Rule, rule

# ---- along which axis a constant runs ----


def channel_vector(values: Array, shape: Shape) -> tuple[Array, int | None] | None:
    """A broadcast constant as a vector and its axis (1, -1; None for a scalar); None if it varies along other axes."""
    if values.size == 1:
        return np.float32(values.reshape(1)), None
    rank = len(shape)
    if values.ndim > rank:
        return None
    padded = (1,) * (rank - values.ndim) + values.shape
    long = [axis for axis, size in enumerate(padded) if size > 1]
    if len(long) != 1 or padded[long[0]] != shape[long[0]]:
        return None
    axis = -1 if long[0] == rank - 1 else long[0]
    return (values.reshape(-1).astype(np.float32), axis) if axis in (-1, 1) else None


def _axes_agree(node: Node, axis: int | None) -> bool:
    return axis is None or node.axis is None or node.axis == axis


# ---- the kernel into which a step is fused ----

MOST_STEPS = 16  # of a kernel: each may add an argument, of which the C core takes 32


def host(graph: Graph, node: Node, x: str, axis: int | None) -> Node | None:
    """The kernel that produces float32 `x`, read by `node` alone, and into which a step along `axis` can be fused."""
    maker = graph.producer(x)
    if maker is None or not graph.only_user(x, node) or not _axes_agree(maker, axis):
        return None
    epilogue = epilogue_of(maker)
    if epilogue is None or len(epilogue.stores) != 1 or not isinstance(epilogue.stores[0], ops.ToFloat):
        return None
    if len(epilogue.steps) >= MOST_STEPS:
        return None
    if axis == -1 and maker.axis is None and maker.reads != "same":
        return None
    return maker


def elementwise_kernel(graph: Graph, node: Node, x: str) -> Node:
    """Replace `node` by an Elementwise on `x`; its rows and channels are set with the layout."""
    operator = ops.Elementwise(node.name, 0, 0, ops.Epilogue())
    made = Node("Elementwise", [x], node.outputs, {}, node.name, KERNEL, operator, reads="same")
    graph.replace_node(node, made)
    _set_position(graph, made, node)
    return made


SCALAR = "its result is a scalar, without axes"


def join(graph: Graph, node: Node, x: str, step: ops.Step, axis: int | None, *tensors: str) -> Outcome:
    """Append `step` to the kernel that produces `x`, or create one."""
    value = graph.values[node.outputs[0]]
    if value.dtype != "float32" or graph.values[x].dtype != "float32":
        return f"'{x}' is {graph.values[x].dtype} and its result {value.dtype}; handled: float32"
    if not value.shape:
        return SCALAR
    if graph.values[x].shape != value.shape:
        return f"it broadcasts '{x}' from {list(graph.values[x].shape)} to {list(value.shape)}"
    maker = host(graph, node, x, axis)
    if maker is None:
        maker = elementwise_kernel(graph, node, x)
    else:
        outputs = node.outputs
        graph.remove(node)
        graph.set_outputs(maker, outputs)
        _set_position(graph, maker, node)  # the node's inputs may be produced later than the kernel's own
    epilogue = epilogue_of(maker)
    assert epilogue is not None
    set_epilogue(maker, [*epilogue.steps, step], epilogue.stores)
    if axis is not None:
        maker.axis = axis
    graph.set_inputs(maker, [*maker.inputs, *tensors])
    return True


# ---- steps with a constant ----


def with_constant(make: Callable[[Array], ops.Step], op: str) -> Callable[..., Outcome]:
    def to(graph: Graph, node: Node, x: str, c: Array) -> Outcome:
        shape = graph.values[x].shape
        found = channel_vector(c, shape)
        if found is not None:
            return join(graph, node, x, make(found[0]), found[1])
        if np.broadcast_shapes(c.shape, shape) != shape:
            return f"its constant of shape {list(c.shape)} broadcasts '{x}' of {list(shape)}"
        whole = graph.constant(np.array(np.broadcast_to(c, shape), np.float32, order="C"), node.name)
        return combined(graph, node, x, whole, op)

    return to


def divided(graph: Graph, node: Node, x: str, c: Array) -> Outcome:
    """x / 2^n is x * 2^-n exactly; other divisions are not rewritten."""
    inverse = np.float32(1) / c.astype(np.float32)
    exact = np.frexp(np.abs(c.astype(np.float32)))[0] == 0.5
    if not exact.all():
        return "its divisor is not a power of two: multiplying by the inverse would round differently"
    return with_constant(ops.Scale, "multiply")(graph, node, x, inverse)


def subtracted(graph: Graph, node: Node, x: str, c: Array) -> Outcome:
    return with_constant(ops.Bias, "add")(graph, node, x, -c)


# ---- steps with a run-time tensor ----


def combined(graph: Graph, node: Node, x: str, y: str, op: str) -> Outcome:
    step = ops.Combine(op, y)  # type: ignore[arg-type]
    return join(graph, node, x, step, None, y)


def with_tensor(op: str) -> Callable[..., Outcome]:
    """Fuse into the later of two producers: only that one can read the result of the other."""

    def to(graph: Graph, node: Node, x: str, y: str) -> Outcome:
        a, b = graph.values[x], graph.values[y]
        if op == "multiply" and (row := _row_scale(graph, node, x, y)) is not None:
            return row
        if a.shape != b.shape:
            return f"'{x}' is {list(a.shape)} and '{y}' {list(b.shape)}; handled: the same shape"
        if x == y:
            return f"both its inputs are '{x}'"
        second = op != "subtract" and host(graph, node, y, None) is not None
        if second and (host(graph, node, x, None) is None or _position(graph, y) > _position(graph, x)):
            x, y = y, x
        return combined(graph, node, x, y, op)

    return to


def _set_position(graph: Graph, made: Node, node: Node) -> None:
    """Give a new node the position of the node that it replaces."""
    if node in graph.positions:
        graph.positions[made] = graph.positions[node]


def _position(graph: Graph, name: str) -> int:
    """The position of the producer of a value in the order of the graph; -1 without one."""
    maker = graph.producer(name)
    if maker is not None and maker not in graph.positions:  # a rule has inserted it since the positions were set
        graph.positions = {node: index for index, node in enumerate(graph.order())}
    return -1 if maker is None else graph.positions[maker]


def _row_scale(graph: Graph, node: Node, x: str, y: str) -> Outcome:
    """Multiplication by a [..., 1] tensor: the step of a per-token quantizer."""
    for value, row in ((x, y), (y, x)):
        shape, other = graph.values[value].shape, graph.values[row].shape
        if len(shape) >= 2 and other == (*shape[:-1], 1) and shape[-1] > 1:
            maker = host(graph, node, value, -1)
            if maker is not None and maker.axis == -1:
                return join(graph, node, value, ops.RowScale(row), -1, row)
    return None


# ---- functions ----


def activation(function: str) -> Callable[..., Outcome]:
    def to(graph: Graph, node: Node, x: str) -> Outcome:
        return join(graph, node, x, ops.Activate(function), None)

    return to


def gelu(graph: Graph, node: Node, x: str) -> Outcome:
    if (form := node.attributes.get("approximate", "none")) != "none":
        return f"its approximate is {form}; handled: none"
    return activation("gelu")(graph, node, x)


def hardsigmoid(graph: Graph, node: Node, x: str) -> Outcome:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if np.float32(alpha) != np.float32(1 / 6) or beta != 0.5:
        return f"its alpha is {alpha:g} and its beta {beta:g}; handled: 1/6 and 0.5, as PyTorch has them"
    return activation("hardsigmoid")(graph, node, x)


def clip(graph: Graph, node: Node, x: str) -> Outcome:
    limits = [-np.inf, np.inf]
    for index, name in enumerate(node.inputs[1:3]):
        if name:
            data = graph.constant_of(name)
            if data is None:
                return "its bounds are made at run time"
            limits[index] = float(data.reshape(-1)[0])
    largest = float(np.finfo(np.float32).max)
    low, high = max(limits[0], -largest), min(limits[1], largest)
    if low == 0 and limits[1] == np.inf:
        return activation("relu")(graph, node, x)
    return join(graph, node, x, ops.Clip(low, high), None)


def prelu(graph: Graph, node: Node, x: str, slope: Array) -> Outcome:
    found = channel_vector(slope, graph.values[x].shape)
    if found is None:
        return f"its slope of shape {list(slope.shape)} is not by channel of {list(graph.values[x].shape)}"
    return join(graph, node, x, ops.PRelu(found[0]), found[1])


def leaky_relu(graph: Graph, node: Node, x: str) -> Outcome:
    slope = ops.constant(node.attributes.get("alpha", 0.01))
    return join(graph, node, x, ops.PRelu(slope), None)


def negated(graph: Graph, node: Node, x: str) -> Outcome:
    return join(graph, node, x, ops.Scale(ops.constant(-1)), None)


def rounded_sum(graph: Graph, node: Node, x: str) -> Outcome:
    """Remove Round of an integer sum."""
    maker = host(graph, node, x, None)
    epilogue = epilogue_of(maker) if maker is not None else None
    exact = maker is not None and maker.operator is not None and maker.operator.sums_are_exact
    if maker is None or not exact or epilogue is None or epilogue.steps:
        return f"'{x}' is not an integer sum with it as the only consumer"
    outputs = node.outputs
    graph.remove(node)
    graph.set_outputs(maker, outputs)
    return True


# ---- stores ----


def add_store(graph: Graph, node: Node, x: str, store: ops.Store, axis: int | None) -> Outcome:
    """Add a store to the kernel that produces `x`, in place of its float32 output if nothing else reads that."""
    if not graph.values[x].shape:
        return SCALAR
    maker = graph.producer(x)
    epilogue = epilogue_of(maker) if maker is not None else None
    if maker is None or epilogue is None or not _stores(maker, epilogue, x, axis):
        maker = elementwise_kernel(graph, node, x)
        set_epilogue(maker, [], [store])
        maker.axis = axis
        return True
    alone, new = graph.only_user(x, node), node.outputs[0]
    graph.remove(node)
    stores, outputs = list(epilogue.stores), list(maker.outputs)
    if alone:
        index = outputs.index(x)
        stores[index], outputs[index] = store, new
    else:
        stores.append(store)
        outputs.append(new)
    set_epilogue(maker, epilogue.steps, stores)
    graph.set_outputs(maker, outputs)
    if axis is not None:
        maker.axis = axis
    return True


def _stores(maker: Node, epilogue: ops.Epilogue, x: str, axis: int | None) -> bool:
    """Whether `x` is a float32 output of the kernel, so that it can have another store along that axis."""
    floats = isinstance(epilogue.stores[maker.outputs.index(x)], ops.ToFloat)
    return floats and _axes_agree(maker, axis) and not (axis == -1 and maker.axis is None and maker.reads != "same")


def quantize(graph: Graph, node: Node, x: str) -> Outcome:
    a = node.attributes
    return add_store(graph, node, x, ops.ToCodes(a["factor"], a["storage"], a["divide"]), None)


def binarize(graph: Graph, node: Node, x: str, threshold: Array) -> Outcome:
    storage = graph.values[node.outputs[0]].bits
    axis = int(node.attributes.get("axis", -1))
    found = channel_vector(threshold, graph.values[x].shape)
    if storage is None or found is None or found[1] not in (None, axis):
        return f"its threshold of shape {list(threshold.shape)} is not by channel of {list(graph.values[x].shape)}"
    return add_store(graph, node, x, ops.ToBits(found[0], storage), axis)


RULES: list[Rule] = [
    # ---- the integer sum ----
    rule("rounded sum", Op("Round", Any("x")), to=rounded_sum),
    # ---- constants ----
    rule("scale", Op("Mul", Any("x"), Const("c")), to=with_constant(ops.Scale, "multiply")),
    rule("bias", Op("Add", Any("x"), Const("c")), to=with_constant(ops.Bias, "add")),
    rule("subtracted constant", Op("Sub", Any("x"), Const("c")), to=subtracted),
    rule("division by a power of two", Op("Div", Any("x"), Const("c")), to=divided),
    # ---- functions ----
    rule("ReLU", Op("Relu", Any("x")), to=activation("relu")),
    rule("clip", Op("Clip", Any("x"), rest=True), to=clip),
    rule("PReLU", Op("PRelu", Any("x"), Const("slope")), to=prelu),
    rule("leaky ReLU", Op("LeakyRelu", Any("x"), attributes=("alpha",)), to=leaky_relu),
    rule("GELU", Op("Gelu", Any("x"), attributes=("approximate",)), to=gelu),
    rule("SiLU", Op("Silu", Any("x"), domain=INTERNAL), to=activation("silu")),
    rule("sigmoid", Op("Sigmoid", Any("x")), to=activation("sigmoid")),
    rule("tanh", Op("Tanh", Any("x")), to=activation("tanh")),
    rule("hard swish", Op("HardSwish", Any("x")), to=activation("hardswish")),
    rule("hard sigmoid", Op("HardSigmoid", Any("x"), attributes=("alpha", "beta")), to=hardsigmoid),
    rule("negation", Op("Neg", Any("x")), to=negated),
    # ---- other tensors ----
    rule("residual", Op("Add", Any("x"), Any("y")), to=with_tensor("add")),
    rule("product of tensors", Op("Mul", Any("x"), Any("y")), to=with_tensor("multiply")),
    rule("difference", Op("Sub", Any("x"), Any("y")), to=with_tensor("subtract")),
    # ---- stores ----
    rule("requantize", Op("QuantizeCodes", Any("x"), domain=INTERNAL), to=quantize),
    rule("binarize", Op(Binarize, Any("x"), Const("threshold")), to=binarize),
]
