"""One way to say each thing: what exporters write in many forms becomes the form that the later stages know.

Biases become `Add`, batch norm `Mul` and `Add`, reshapes of every kind one `View`, zero `Pad` the pads of the convolution,
spelled-out GELU, SiLU and layer norm their operators. Quantizers mark their output with its storage (codes or bits).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from subbyte.formats import PerGroup
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Weight
from subbyte.tvm_kernels.memory import ALIGNMENT
from subbyte.tvm_kernels.rewrites.pattern import Any, Coded, Const, Near, Op, Rule, Weights, rule

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
SCALAR_OPERATORS = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Erf", "LeakyRelu", "HardSigmoid")


def _after(graph: Graph, node: Node, op: str, *constants: Array) -> None:
    """Put `op(node's output, constant)` behind a node, once for each constant; `op` may name one operator for each."""
    output = node.outputs[0]
    shape = graph.values[output].shape
    middle = graph.fresh(output)
    graph.add_value(middle, "float32", shape)
    graph.set_outputs(node, [middle])
    for index, (name, values) in enumerate(zip(op.split(), constants, strict=True)):
        last = index == len(constants) - 1
        target = output if last else graph.fresh(output)
        if not last:
            graph.add_value(target, "float32", shape)
        graph.add(Node(name, [middle, graph.constant(values)], [target], {}, node.name))
        middle = target


def _channels_on_axis_1(values: Array, rank: int) -> Array:
    return np.asarray(values, np.float32).reshape(1, -1, *([1] * (rank - 2)))


# ---- what does nothing ----


def skip(graph: Graph, node: Node, x: str) -> bool:
    """A node that hands its input on: its users read the input."""
    if any(graph.users(name) or name in graph.outputs for name in node.outputs[1:]):
        return False
    source, target = graph.values[x], graph.values[node.outputs[0]]
    if source.dtype != target.dtype or node.outputs[0] in graph.outputs:
        return False
    graph.replace_uses(node.outputs[0], x)
    graph.remove(node)
    return True


def view(graph: Graph, node: Node, x: str) -> bool:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same bytes under another shape."""
    if graph.values[x].shape == graph.values[node.outputs[0]].shape and skip(graph, node, x):
        return True
    graph.replace_node(node, Node("View", [x], node.outputs, {}, node.name, "subbyte"))
    return True


def view_of_view(graph: Graph, node: Node, x: str) -> bool:
    graph.set_inputs(node, [x])
    return True


def move_above_view(graph: Graph, node: Node, x: str, view: Node) -> bool:
    """f(View(x)) is View(f(x)) where f looks at single elements: so that f joins what makes x."""
    if not graph.only_user(view.outputs[0], node):
        return False
    constants = [graph.constant_of(name) for name in node.inputs[1:] if name]
    if any(c is None or c.size != 1 for c in constants):
        return False
    middle = graph.fresh(node.outputs[0])
    source, target = graph.values[x], graph.values[node.outputs[0]]
    graph.add_value(middle, target.dtype, source.shape, storage=target.storage)
    moved = replace(node, inputs=[x, *node.inputs[1:]], outputs=[middle])
    graph.replace_node(node, moved, replace(view, inputs=[middle], outputs=node.outputs))
    return True


def part(graph: Graph, node: Node, x: str, **_: object) -> bool:
    """Gather of one index, or Slice without steps, along the first axis that is longer than 1: a part of the same bytes."""
    value, output = graph.values[x], graph.values[node.outputs[0]]
    if x in graph.inputs or not isinstance(value.storage, ops.Float):
        return False
    if node.op == "Gather":
        index = graph.constant_of(node.inputs[1])
        if index is None or index.size != 1:
            return False
        axis, first = int(node.attributes.get("axis", 0)) % len(value.shape), int(index.reshape(-1)[0])
    else:
        arguments = [graph.constant_of(name) if name else None for name in node.inputs[1:5]]
        starts, ends, axes, steps = (arguments + [None] * 4)[:4]
        if starts is None or ends is None or axes is None or axes.size != 1:
            return False
        if steps is not None and int(steps.reshape(-1)[0]) != 1:
            return False
        axis, first = int(axes.reshape(-1)[0]) % len(value.shape), int(starts.reshape(-1)[0])
    if any(size != 1 for size in value.shape[:axis]):
        return False
    length = int(np.prod(value.shape[axis + 1 :], dtype=np.int64))
    first += value.shape[axis] if first < 0 else 0
    start = first * length
    if start * np.dtype(value.dtype).itemsize % ALIGNMENT or start + output.size > value.size:
        return False
    graph.replace_node(node, Node("Part", [x], node.outputs, {"start": start}, node.name, "subbyte"))
    return True


# ---- biases, batch norm ----


def conv_bias(graph: Graph, node: Node, bias: Array, **_: object) -> bool:
    rank = len(graph.values[node.outputs[0]].shape)
    graph.set_inputs(node, node.inputs[:2])
    _after(graph, node, "Add", _channels_on_axis_1(bias, rank))
    return True


def auto_pad(graph: Graph, node: Node, **_: object) -> bool:
    """auto_pad SAME and VALID as explicit pads, and every other attribute written out."""
    attributes = node.attributes
    x, y = graph.values[node.inputs[0]].shape, graph.values[node.outputs[0]].shape
    rank = len(x) - 2
    if rank not in (1, 2) or attributes.get("explicit"):
        return False
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


def gemm(graph: Graph, node: Node, **_: object) -> bool:
    """Gemm with constant B as MatMul and Add."""
    attributes = node.attributes
    x, b = graph.values[node.inputs[0]], graph.values[node.inputs[1]]
    c = graph.values[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else None
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if attributes.get("transA", 0) or alpha != 1 or (c is not None and beta != 1) or not b.is_constant:
        return False
    right = node.inputs[1]
    if attributes.get("transB", 0):
        right = graph.fresh(b.name)
        moved = graph.add_value(right, "float32", b.shape[::-1])
        if b.weight is not None:
            moved.weight = replace(b.weight, order=b.weight.order[::-1])
        else:
            assert b.data is not None
            moved.data = np.ascontiguousarray(b.data.T)
    product = Node("MatMul", [x.name, right], node.outputs, {}, node.name)
    if c is None:
        graph.replace_node(node, product)
        return True
    middle = graph.fresh(node.outputs[0])
    graph.add_value(middle, "float32", graph.values[node.outputs[0]].shape)
    product.outputs = [middle]
    graph.replace_node(node, product, Node("Add", [middle, c.name], node.outputs, {}, node.name))
    return True


def batch_norm(graph: Graph, node: Node, x: str, gamma: Array, beta: Array, mean: Array, variance: Array) -> bool:
    """y = x * s + t with s = gamma / sqrt(variance + epsilon), in float64 and rounded once."""
    epsilon = node.attributes.get("epsilon", 1e-5)
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shift = beta.astype(np.float64) - mean.astype(np.float64) * scale
    rank = len(graph.values[x].shape)
    output = node.outputs[0]
    middle = graph.fresh(output)
    graph.add_value(middle, "float32", graph.values[x].shape)
    factor = graph.constant(_channels_on_axis_1(scale, rank))
    bias = graph.constant(_channels_on_axis_1(shift, rank))
    first = Node("Mul", [x, factor], [middle], {}, node.name)
    graph.replace_node(node, first, Node("Add", [middle, bias], [output], {}, node.name))
    return True


# ---- padding ----


def pad_into_window(graph: Graph, node: Node, x: str, pad: Node, **_: object) -> bool:
    """Pad of the spatial axes with level 0 (or of signs with +1) becomes the pads of the convolution behind it."""
    pads = graph.constant_of(pad.inputs[1])
    fill = 0.0
    if len(pad.inputs) > 2 and pad.inputs[2]:
        value = graph.constant_of(pad.inputs[2])
        if value is None:
            return False
        fill = float(value.reshape(-1)[0])
    rank = len(graph.values[x].shape)
    axes = graph.constant_of(pad.inputs[3]) if len(pad.inputs) > 3 and pad.inputs[3] else np.arange(rank)
    if pads is None or axes is None or pad.attributes.get("mode", "constant") != "constant":
        return False
    before, after = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    half = len(pads) // 2
    before[axes], after[axes] = pads[:half], pads[half:]
    wanted = 1.0 if isinstance(graph.values[x].storage, ops.Bits) else 0.0
    if fill != wanted or before[:2].any() or after[:2].any() or (before < 0).any() or (after < 0).any():
        return False
    own = np.array(node.attributes["pads"], np.int64)
    if wanted == 1.0 and own.any():
        return False
    node.attributes = {**node.attributes, "pads": (own + np.concatenate([before[2:], after[2:]])).tolist()}
    if wanted == 1.0:
        node.attributes["pads_with"] = 1
    graph.set_inputs(node, [x, *node.inputs[1:]])
    return True


# ---- activations and norms that are spelled out ----


def becomes(op: str) -> object:
    """A rewrite that puts `op(x)` in the node's place."""

    def to(graph: Graph, node: Node, x: str, **_: object) -> bool:
        graph.replace_node(node, Node(op, [x], node.outputs, {}, node.name))
        return True

    return to


def layer_norm(graph: Graph, node: Node, x: str, epsilon: Array, exponent: Array, **_: object) -> bool:
    shape = graph.values[x].shape
    for name in ("mean", "variance"):
        axes = _[name].attributes.get("axes")  # type: ignore[attr-defined]
        if axes is None and len(_[name].inputs) > 1:  # type: ignore[attr-defined]
            axes = graph.constant_of(_[name].inputs[1])  # type: ignore[attr-defined]
        if axes is None or [int(a) % len(shape) for a in np.reshape(axes, -1)] != [len(shape) - 1]:
            return False
    if float(exponent.reshape(-1)[0]) != 2.0:
        return False
    one, zero = graph.constant(np.ones(shape[-1], np.float32)), graph.constant(np.zeros(shape[-1], np.float32))
    attributes = {"axis": -1, "epsilon": float(epsilon.reshape(-1)[0])}
    graph.replace_node(node, Node("LayerNormalization", [x, one, zero], node.outputs, attributes, node.name))
    return True


def global_mean(graph: Graph, node: Node, x: str, **_: object) -> bool:
    """ReduceMean over the spatial axes is a global average pool."""
    shape = graph.values[x].shape
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        axes = graph.constant_of(node.inputs[1])
    if axes is None or len(shape) not in (3, 4):
        return False
    if sorted(int(a) % len(shape) for a in np.reshape(axes, -1)) != list(range(2, len(shape))):
        return False
    pooled = graph.fresh(node.outputs[0])
    graph.add_value(pooled, "float32", (*shape[:2], *([1] * (len(shape) - 2))))
    pool = Node("GlobalAveragePool", [x], [pooled], {}, node.name)
    graph.replace_node(node, pool, Node("View", [pooled], node.outputs, {}, node.name, "subbyte"))
    return True


# ---- steps in front of products ----


def scaled_product(graph: Graph, node: Node, codes: str, step: Array, **weights: Weight) -> bool:
    """product(Mul(codes, step), scaled weight) is Mul(product(codes, levels), step x scales), exact until the Mul."""
    if step.size != 1:
        return False
    weight = next(iter(weights.values()))
    scale = np.float64(step.reshape(-1)[0])
    right = node.inputs[1]
    rank = len(graph.values[node.outputs[0]].shape)
    factor: Array = np.float32([scale])
    if weight.scaled and not isinstance(weight.tensor.granularity, PerGroup):
        right = graph.fresh(right)
        graph.add_value(right, "float32", weight.shape, weight=replace(weight, scaled=False))
        scales = np.float32(weight.tensor.scale.astype(np.float64) * scale)
        factor = scales.reshape(-1) if node.op == "MatMul" else _channels_on_axis_1(scales, rank)
        if scales.size == 1:
            factor = scales.reshape(1)
    graph.set_inputs(node, [codes, right, *node.inputs[2:]])
    _after(graph, node, "Mul", factor)
    return True


def scales_behind(graph: Graph, node: Node, codes: str, weight: Weight) -> bool:
    """product(codes, weight with scales by channel) is Mul(product(codes, levels), scales)."""
    if not weight.scaled or isinstance(weight.tensor.granularity, PerGroup):
        return False
    return scaled_product(graph, node, codes, np.ones(1, np.float32), weight=weight)


def requantized(graph: Graph, node: Node, codes: str, step: Array, moved: Node | None = None) -> bool:
    """Quantize(Mul(codes, step)) with the same step and range gives the codes back: |error| of the division is below 1/2."""
    same = graph.values[codes].storage == node.attributes["storage"] and node.attributes["divide"]
    if not same or step.size != 1 or float(step.reshape(-1)[0]) != node.attributes["factor"]:
        return False
    if moved is None:
        if node.outputs[0] in graph.outputs:
            return False
        graph.replace_uses(node.outputs[0], codes)
        graph.remove(node)
        return True
    graph.replace_node(node, replace(moved, inputs=[codes, *moved.inputs[1:]], outputs=node.outputs))
    return True


# ---- storages ----


def quantize(graph: Graph, node: Node, x: str, inverse: Array, low: Array, high: Array) -> bool:
    """subbyte.Quantize marks its output as codes."""
    bottom, top = float(low.reshape(-1)[0]), float(high.reshape(-1)[0])
    whole = bottom.is_integer() and top.is_integer() and inverse.size == 1
    if not whole or top < bottom or not ((bottom >= 0 and top <= 255) or (bottom >= -128 and top <= 127)):
        return False
    storage = ops.Codes(int(bottom), int(top), 0 if bottom >= 0 else 128)
    attributes = {"factor": float(np.float32(inverse.reshape(-1)[0])), "storage": storage, "divide": False}
    graph.values[node.outputs[0]].storage = storage
    graph.replace_node(node, Node("QuantizeCodes", [x], node.outputs, attributes, node.name, "subbyte"))
    return True


def binarize(graph: Graph, node: Node, x: str, threshold: Array) -> bool:
    """subbyte.Binarize marks its output as bits, along the axis of its threshold or, without one, of its users."""
    value = graph.values[node.outputs[0]]
    if not isinstance(value.storage, ops.Float):
        return False
    rank = len(value.shape)
    spatial = rank > 2 and any(user.op in ("Conv", "Pad") for user in graph.users(value.name))
    axis = 1 if spatial else rank - 1
    value.storage = ops.Bits(value.shape[axis])
    node.attributes = {**node.attributes, "axis": axis if spatial else -1}
    return True


def tokens(graph: Graph, node: Node, x: str) -> bool:
    value = graph.values[node.outputs[0]]
    if not isinstance(value.storage, ops.Float):
        return False
    value.storage = ops.Codes(-128, 127, 128)
    return True


def carry_storage(graph: Graph, node: Node, codes: str, **_: object) -> bool:
    """Moving codes about leaves them codes; bits cannot be moved one by one."""
    inputs = [graph.values[name].storage for name in node.inputs if name and not graph.values[name].is_constant]
    output = graph.values[node.outputs[0]]
    if (
        any(storage != inputs[0] for storage in inputs)
        or isinstance(inputs[0], ops.Bits)
        or output.storage == inputs[0]
    ):
        return False
    if node.op == "Concat" and any(graph.values[name].is_constant for name in node.inputs):
        return False
    for name in node.outputs:
        graph.values[name].storage = inputs[0]
    return True


_HALF_ERF = Op("Add", Op("Erf", Op("Div", Any("x"), Near(math.sqrt(2)))), Near(1.0))
_HALF_ERF_MUL = Op("Add", Op("Erf", Op("Mul", Any("x"), Near(math.sqrt(0.5)))), Near(1.0))
_CENTRED = Op("Sub", Any("x"), Op("ReduceMean", Any("x"), key="mean", rest=True))
_VARIANCE = Op("ReduceMean", Op("Pow", _CENTRED, Const("exponent")), key="variance", rest=True)
_STEP = Op("Mul", Coded("codes"), Const("step"))
_VIEWED = Op("View", Any("x"), domain="subbyte", key="view")

RULES: list[Rule] = [
    # ---- what does nothing ----
    rule("identity", Op("Identity", Any("x")), to=skip),
    rule("dropout", Op("Dropout", Any("x"), rest=True), to=skip),
    rule("cast to itself", Op("Cast", Any("x")), to=skip),
    *[rule("view", Op(op, Any("x"), rest=True), to=view) for op in VIEWS],
    rule("view of a view", Op("View", Op("View", Any("x"), domain="subbyte"), domain="subbyte"), to=view_of_view),
    rule("part", Op("Gather", Any("x"), Const("index")), to=part),
    rule("part", Op("Slice", Any("x"), rest=True), to=part),
    # ---- biases, batch norm, windows ----
    *[rule("window", Op(op, Any("x"), rest=True), to=auto_pad) for op in ("Conv", "MaxPool", "AveragePool")],
    rule("convolution's bias", Op("Conv", Any("x"), Any("w", constants=True), Const("bias")), to=conv_bias),
    rule("Gemm", Op("Gemm", Any("x"), Any("w", constants=True), rest=True), to=gemm),
    rule(
        "batch norm",
        Op("BatchNormalization", Any("x"), Const("gamma"), Const("beta"), Const("mean"), Const("variance")),
        to=batch_norm,
    ),
    rule("global mean", Op("ReduceMean", Any("x"), rest=True), to=global_mean),
    # ---- spelled-out activations and norms ----
    rule("GELU, x (1 + erf) / 2", Op("Mul", Op("Mul", Any("x"), _HALF_ERF), Near(0.5)), to=becomes("Gelu")),  # type: ignore[arg-type]
    rule("GELU, x (1 + erf) / 2", Op("Mul", Op("Mul", Any("x"), _HALF_ERF_MUL), Near(0.5)), to=becomes("Gelu")),  # type: ignore[arg-type]
    rule("GELU, (x / 2) (1 + erf)", Op("Mul", Op("Mul", Any("x"), Near(0.5)), _HALF_ERF), to=becomes("Gelu")),  # type: ignore[arg-type]
    rule("GELU, (x / 2) (1 + erf)", Op("Mul", Op("Mul", Any("x"), Near(0.5)), _HALF_ERF_MUL), to=becomes("Gelu")),  # type: ignore[arg-type]
    rule("GELU of com.microsoft", Op("Gelu", Any("x"), domain="com.microsoft"), to=becomes("Gelu")),  # type: ignore[arg-type]
    rule("SiLU", Op("Mul", Any("x"), Op("Sigmoid", Any("x"))), to=becomes("Silu")),  # type: ignore[arg-type]
    rule(
        "layer norm",
        Op("Div", _CENTRED, Op("Sqrt", Op("Add", _VARIANCE, Const("epsilon")))),
        to=layer_norm,
    ),
    # ---- storages ----
    rule(
        "codes", Op("Quantize", Any("x"), Const("inverse"), Const("low"), Const("high"), domain="subbyte"), to=quantize
    ),
    rule("signs", Op("Binarize", Any("x"), Const("threshold"), domain="subbyte"), to=binarize),
    rule("codes by token", Op("QuantizePerToken", Any("x"), domain="subbyte"), to=tokens),
    rule("moved codes", Op("View", Coded("codes"), domain="subbyte"), to=carry_storage),
    *[
        rule("moved codes", Op(op, Coded("codes"), rest=True), to=carry_storage)
        for op in ("Transpose", "Slice", "Gather", "Split", "Concat")
    ],
    # ---- padding ----
    *[
        rule("padding", Op(op, Op("Pad", Any("x"), key="pad", rest=True), rest=True), to=pad_into_window)
        for op in ("Conv",)
    ],
    # ---- steps in front of products ----
    *[
        rule("step and scales", Op(op, _STEP, Weights("weight"), rest=True), to=scaled_product)
        for op in ("Conv", "MatMul")
    ],
    *[
        rule("scales", Op(op, Coded("codes"), Weights("weight"), rest=True), to=scales_behind)
        for op in ("Conv", "MatMul")
    ],
    rule("same codes again", Op("QuantizeCodes", _STEP, domain="subbyte"), to=requantized),
    rule(
        "same codes again, moved",
        Op("QuantizeCodes", Op("View", _STEP, key="moved", domain="subbyte"), domain="subbyte"),
        to=requantized,
    ),
    rule(
        "same codes again, moved",
        Op("QuantizeCodes", Op("Transpose", _STEP, key="moved"), domain="subbyte"),
        to=requantized,
    ),
    # ---- elementwise before views ----
    rule("quantize before a view", Op("QuantizeCodes", _VIEWED, domain="subbyte"), to=move_above_view),
    *[rule("elementwise before a view", Op(op, _VIEWED), to=move_above_view) for op in SCALAR_OPERATORS],
    rule(
        "quantize before a transpose",
        Op("QuantizeCodes", Op("Transpose", Any("x"), key="view"), domain="subbyte"),
        to=move_above_view,
    ),
]
