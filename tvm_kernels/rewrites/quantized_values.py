"""Integers from quantizer to product: the values that are stored as codes or bits, and the operators between.

Quantize, Binarize, QuantizePerToken   set the storage of their output
Pad before a convolution               becomes its pads: level 0 for codes, +1 for bits
product(Mul(codes, step), weights)     ->  Mul(product(codes, levels), step x scales)
copy(Mul(codes, step))                 ->  Mul(copy(codes), step) for data movement, max pools, Relu and Clip
Quantize after a view                  is placed before it, after the producer of the value
"""

from __future__ import annotations

import typing
from dataclasses import replace

import numpy as np

from subbyte.dialect.binarize import Binarize
from subbyte.dialect.quantize import Quantize
from subbyte.dialect.quantize_per_token import QuantizePerToken
from subbyte.formats.reference import ACCUMULATOR_LIMIT
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Value
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.rewrites.canonical_form import after, channels_on_axis_1, global_pool, skip
from subbyte.tvm_kernels.rewrites.code_values import (
    ALONG_REDUCTION,
    DATA_MOVEMENT,
    STEP_AFTER_BOUNDS,
    STEP_AFTER_MOVEMENT,
    packed,
)
from subbyte.tvm_kernels.rewrites.epilogues import SCALAR, channel_vector
from subbyte.tvm_kernels.rewrites.float_levels import FEW_LEVELS, low_bit
from subbyte.tvm_kernels.rewrites.integers import clip_limits
from subbyte.tvm_kernels.rewrites.pattern import (
    EVERY,
    LEVELS,
    WINDOW,
    Any,
    Coded,
    Const,
    Op,
    Outcome,
    Rule,
    Weights,
    rule,
)

SCALAR_OPERATORS = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Gelu", "Erf", "LeakyRelu", "HardSigmoid")


# ---- padding ----


def pad_into_window(graph: Graph, node: Node, x: str, pad: Node, **_: object) -> Outcome:
    """Pad of the spatial axes with level 0 (of bits with +1) becomes the pads of the convolution after it."""
    pads = graph.constant_of(pad.inputs[1])
    fill = 0.0
    if pad.given(2):
        value = graph.constant_of(pad.given(2))
        if value is None:
            return "its fill is made at run time"
        fill = float(value.reshape(-1)[0])
    rank = len(graph.values[x].shape)
    axes = graph.constant_of(pad.given(3)) if pad.given(3) else np.arange(rank)
    if pads is None or axes is None:
        return f"the pads of '{pad.name}' are made at run time"
    if (mode := pad.attributes.get("mode", "constant")) != "constant":
        return f"'{pad.name}' pads by mode {mode}; handled: constant"
    before, after = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    half = len(pads) // 2
    before[axes], after[axes] = pads[:half], pads[half:]
    wanted = 1.0 if graph.values[x].bits is not None else 0.0
    if fill != wanted:
        return f"'{pad.name}' pads with {fill:g}; handled: {wanted:g}"
    if before[:2].any() or after[:2].any() or (before < 0).any() or (after < 0).any():
        return f"'{pad.name}' pads batch or channels, or cuts off"
    own = np.array(node.attributes["pads"], np.int64)
    if wanted == 1.0 and own.any():
        return f"'{pad.name}' pads with {fill:g}, and the convolution itself with 0"
    node.attributes = {**node.attributes, "pads": (own + np.concatenate([before[2:], after[2:]])).tolist()}
    if wanted == 1.0:
        node.attributes["pads_with"] = 1
    graph.set_inputs(node, [x, *node.inputs[1:]])
    return True


# ---- steps before products ----


def _by_axis(step: Array) -> str:
    return f"its activation has {step.size} steps, one for each index of an axis; handled: one step"


def scaled_product(graph: Graph, node: Node, codes: str, step: Array, **weights: Value) -> Outcome:
    """product(Mul(codes, step), scaled weight) is Mul(product(codes, levels), step x scales), exact up to the Mul."""
    if step.size != 1:
        return _by_axis(step)
    weight = next(iter(weights.values()))
    if not weight.scales_follow(0 if node.op == "Conv" else -1):
        return ALONG_REDUCTION
    scale = np.float64(step.reshape(-1)[0])
    right = node.inputs[1]
    rank = len(graph.values[node.outputs[0]].shape)
    factor: Array = np.full(1, scale, np.float32)
    if weight.scaled and not weight.tensor.group_size:
        right = graph.weight(weight.tensor, weight.order, False, right)
        scales = np.float32(weight.tensor.scale.astype(np.float64) * scale)
        factor = scales.reshape(-1) if node.op == "MatMul" else channels_on_axis_1(scales, rank)
        if scales.size == 1:
            factor = scales.reshape(1)
    graph.set_inputs(node, [codes, right, *node.inputs[2:]])
    after(graph, node, "Mul", graph.constant(factor))
    return True


def few_levels(graph: Graph, node: Node, w: Array, **_: object) -> Outcome:
    """Float weights that are levels times a scale for each output channel are low-bit weights, exactly."""
    axis = 0 if node.op == "Conv" else w.ndim - 1
    levels = low_bit(w, axis) if node.op != "MatMul" or w.ndim == 2 else None
    if levels is None:
        return "they are not integer levels times a scale for each output channel"
    if (w == w.flat[0]).all():
        return f"all of them are {w.flat[0]:g}: an average"
    if levels.depth * 255 * levels.format.largest >= ACCUMULATOR_LIMIT:
        return f"sums of {levels.depth} products of 8 bits and {levels.format.name} are beyond int32"
    order = [0 if i == axis else i + (i < axis) for i in range(w.ndim)]
    name = graph.weight(levels, order, True, node.inputs[1])
    graph.set_inputs(node, [node.inputs[0], name, *node.inputs[2:]])
    return True


def step_after_movement(graph: Graph, node: Node, codes: str, step: Array, **_: object) -> Outcome:
    """copy(Mul(codes, step)) is Mul(copy(codes), step) for data movement: the same elements, a byte each."""
    storage = graph.values[codes].codes
    if storage is None:
        return packed(codes)
    if step.size != 1:
        return _by_axis(step)
    one_step = float(step.reshape(-1)[0])
    inputs = [codes, *node.inputs[1:]]
    if node.op == "Pad" and node.attributes.get("mode", "constant") == "constant" and len(inputs) > 2 and inputs[2]:
        fill = graph.constant_of(inputs[2])
        if fill is None:
            return "its fill is made at run time"
        level = _level(float(fill.reshape(-1)[0]), storage, step)
        if level is None:
            return f"its fill {float(fill.reshape(-1)[0]):g} is not a level times the step {one_step:g}"
        inputs[2] = graph.constant(np.float32(level))
    if node.op in POOLS and any(node.outputs[1:]):
        return "its second output is used"
    if node.op in POOLS and not one_step > 0:
        return f"the step {one_step:g} is not positive"
    if node.op == "Concat":
        found = [_step_of(graph, name) for name in node.inputs]
        if any(one is None or one[1] != step or graph.values[one[0]].storage != storage for one in found):
            return "not all that it joins is quantized with one step and one zero point"
        inputs = [one[0] for one in found if one is not None]
    factor = graph.constant(step.reshape(1), "step")
    graph.remove(node)
    copies = [graph.fresh(name) if name else "" for name in node.outputs]
    graph.add(replace(node, inputs=inputs, outputs=copies))
    for copy, name in zip(copies, node.outputs, strict=True):
        if name:
            graph.add_value(copy, "float32", graph.values[name].shape)
            graph.add(Node("Mul", [copy, factor], [name], {}, node.name))
    return True


def _step_of(graph: Graph, name: str) -> tuple[str, Array] | None:
    """Codes and step of Mul(codes, step) with a scalar step."""
    found: dict[str, typing.Any] = {}
    if not _STEP.matches(graph, name, found) or found["step"].size != 1:
        return None
    return found["codes"], found["step"]


def _level(value: float, storage: ops.Codes, step: Array) -> int | None:
    """The level whose product with the step is this float; None if there is none."""
    levels = np.arange(storage.low, storage.high + 1)
    same = levels.astype(np.float32) * step.reshape(()) == np.float32(value)
    return int(levels[same][0]) if same.any() else None


def step_after_bounds(graph: Graph, node: Node, codes: str, step: Array, **_: object) -> Outcome:
    """Relu or Clip of Mul(codes, step) before a product: Mul(Clip(codes), step), where bounds are levels."""
    storage, within = graph.values[codes].codes, clip_limits(graph, node)
    if storage is None or within is None:
        return "its bounds are made at run time" if within is None else packed(codes)
    if not _reaches_product(graph, node.outputs[0]):
        return "no product with constant weights reads its codes"
    if step.size != 1 or not float(step.reshape(-1)[0]) > 0:
        return "its step is not one positive number"
    numbers = np.arange(storage.low, storage.high + 1).astype(np.float32) * step.reshape(())
    bounds = [_level(float(number), storage, step) for number in np.clip(numbers[[0, -1]], *within)]
    if None in bounds or within[0] > within[1]:
        return (
            f"its bounds {within[0]:g} and {within[1]:g} are not multiples of the step {float(step.reshape(-1)[0]):g}"
        )
    if bounds == [storage.low, storage.high] and skip(graph, node, node.inputs[0]) is True:
        return True
    limits = [graph.constant(np.float32(bound)) for bound in bounds]
    clipped = graph.emit("Clip", [codes, *limits], graph.values[codes].shape, codes, node)
    factor = graph.constant(step.reshape((1,) * bool(graph.values[codes].shape)), "step")
    graph.replace_node(node, Node("Mul", [clipped, factor], node.outputs, {}, node.name))
    return True


def _reaches_product(graph: Graph, name: str) -> bool:
    """Whether a product with constant weights reads a value, after data movement, pools and bounds."""
    for user in graph.users(name):
        product = user.op in ("Conv", "MatMul", "Gemm") and user.inputs[0] == name
        if product and graph.values[user.inputs[1]].is_constant:
            return True
        if user.op in (*DATA_MOVEMENT, *POOLS, *BOUNDS) and any(
            _reaches_product(graph, output) for output in user.outputs
        ):
            return True
    return False


def scales_after_product(graph: Graph, node: Node, codes: str, weight: Value) -> Outcome:
    """product(codes, weight with scales by channel) is Mul(product(codes, levels), scales)."""
    if not weight.scaled:
        return None
    if weight.tensor.group_size:
        return f"its weights have a scale for each group of {weight.tensor.group_size}, which the sum applies"
    return scaled_product(graph, node, codes, np.ones(1, np.float32), weight=weight)


def requantized(graph: Graph, node: Node, codes: str, step: Array | None = None) -> Outcome:
    """Quantize(Mul(codes, step)) is the codes where it gives each level back, as with the same step and range."""
    source, made = graph.values[codes].codes, node.attributes["storage"]
    factor = np.ones(1, np.float32) if step is None else step.astype(np.float32).reshape(-1)
    if source is None or factor.size != 1 or not isinstance(made, ops.Codes):
        return packed(codes) if source is None else f"its input has {factor.size} steps; handled: one"
    levels = np.arange(source.low, source.high + 1, dtype=np.float32)
    scale = np.float32(node.attributes["factor"])
    scaled = levels * factor / scale if node.attributes["divide"] else levels * factor * scale
    again = np.clip(np.rint(scaled), made.low, made.high)
    if source.zero_point != made.zero_point or not np.array_equal(again, levels):
        return "it quantizes with another step, zero point or range than its input has"
    graph.replace_node(node, Node("View", [codes], node.outputs, {}, node.name, INTERNAL))
    return True


def step_of_one(graph: Graph, node: Node, codes: str, step: Array) -> Outcome:
    """Mul(codes, 1) is the codes."""
    if graph.values[node.outputs[0]].shape != graph.values[codes].shape or not (step == 1).all():
        return None
    graph.values[node.outputs[0]].storage = graph.values[codes].storage
    graph.replace_node(node, Node("View", [codes], node.outputs, {}, node.name, INTERNAL))
    return True


# ---- storages ----


def quantize(graph: Graph, node: Node, x: str, inverse: Array, low: Array, high: Array) -> Outcome:
    """The output of subbyte.Quantize is stored as codes."""
    bottom, top = float(low.reshape(-1)[0]), float(high.reshape(-1)[0])
    if reason := _another_shape(graph, node, x, "step"):
        return reason
    if inverse.size != 1:
        return f"it has {inverse.size} steps; handled: one"
    whole = bottom.is_integer() and top.is_integer()
    if not whole or top < bottom or not ((bottom >= 0 and top <= 255) or (bottom >= -128 and top <= 127)):
        return f"its levels {bottom:g} to {top:g} are not a range of 8-bit integers"
    storage = ops.Codes(int(bottom), int(top), 0 if bottom >= 0 else 128)
    attributes = {"factor": float(np.float32(inverse.reshape(-1)[0])), "storage": storage, "divide": False}
    graph.values[node.outputs[0]].storage = storage
    graph.replace_node(node, Node("QuantizeCodes", [x], node.outputs, attributes, node.name, INTERNAL))
    return True


def binarize(graph: Graph, node: Node, x: str, threshold: Array) -> Outcome:
    """The output of subbyte.Binarize is stored as bits, along the axis of its threshold or, if scalar, of its users."""
    value = graph.values[node.outputs[0]]
    if value.coded:
        return None
    if reason := _another_shape(graph, node, x, "threshold"):
        return reason
    rank = len(value.shape)
    spatial = rank > 2 and any(user.op in ("Conv", "Pad") for user in graph.users(value.name))
    found = channel_vector(threshold, value.shape)
    axis = found[1] if found is not None and found[1] is not None else 1 if spatial else -1
    if found is None or (spatial and axis != 1):
        return f"its threshold of shape {list(threshold.shape)} is not by channel of {list(value.shape)}"
    value.storage = ops.Bits(value.shape[axis])
    node.attributes = {**node.attributes, "axis": axis}
    return True


def _another_shape(graph: Graph, node: Node, x: str, parameter: str) -> str | None:
    """Why the result of a quantizer has no codes: they take an axis, and the shape of `x`."""
    shape, result = graph.values[x].shape, graph.values[node.outputs[0]].shape
    if shape != result:
        return f"its {parameter} broadcasts '{x}' from {list(shape)} to {list(result)}"
    return None if shape else SCALAR


def tokens(graph: Graph, node: Node, x: str) -> Outcome:
    value = graph.values[node.outputs[0]]
    if value.coded:
        return None
    value.storage = ops.Codes(-128, 127, 128)
    return True


# ---- elementwise operators before views ----


def swap_with_view(graph: Graph, node: Node, x: str, view: Node) -> Outcome:
    """f(View(x)) is View(f(x)) where f is elementwise: so that f can be fused into the producer of x."""
    if not graph.only_user(view.outputs[0], node):
        return f"others read '{view.outputs[0]}', too"
    constants = [graph.constant_of(name) for name in node.inputs[1:] if name]
    if any(c is None or c.size != 1 for c in constants):
        return "its further inputs are not all scalar constants"
    middle = graph.fresh(node.outputs[0])
    source, target = graph.values[x], graph.values[node.outputs[0]]
    graph.add_value(middle, target.dtype, source.shape, storage=target.storage)
    swapped = replace(node, inputs=[x, *node.inputs[1:]], outputs=[middle])
    graph.replace_node(node, swapped, replace(view, inputs=[middle], outputs=node.outputs))
    return True


POOLS, BOUNDS = ("MaxPool", "GlobalMaxPool"), ("Relu", "Clip")
PRODUCT_ATTRIBUTES = {"Conv": WINDOW, "MatMul": ()}
_PAD = Op("Pad", Any("x"), key="pad", rest=True, dtypes=LEVELS, attributes=("mode",))
_STEP = Op("Mul", Coded("codes"), Const("step"))
_VIEWED = Op("View", Any("x"), domain=INTERNAL, key="view")

RULES: list[Rule] = [
    # ---- storages ----
    rule("codes", Op(Quantize, Any("x"), Const("inverse"), Const("low"), Const("high"), dtypes=LEVELS), to=quantize),
    rule("binarize", Op(Binarize, Any("x"), Const("threshold")), to=binarize),
    rule("codes by token", Op(QuantizePerToken, Any("x"), outputs=2), to=tokens),
    # ---- padding ----
    rule("padding", Op("Conv", _PAD, rest=True, dtypes=LEVELS, attributes=WINDOW), to=pad_into_window),
    # ---- steps before products ----
    *[
        rule(FEW_LEVELS, Op(op, x, Const("w"), rest=True, attributes=names), to=few_levels)
        for op, names in PRODUCT_ATTRIBUTES.items()
        for x in (_STEP, Coded("codes"))
    ],
    *[
        rule(
            "step and scales",
            Op(op, _STEP, Weights("weight", integers=True), rest=True, attributes=names),
            to=scaled_product,
        )
        for op, names in PRODUCT_ATTRIBUTES.items()
    ],
    *[
        rule(
            "scales",
            Op(op, Coded("codes"), Weights("weight", integers=True), rest=True, attributes=names),
            to=scales_after_product,
        )
        for op, names in PRODUCT_ATTRIBUTES.items()
    ],
    *[
        rule(
            STEP_AFTER_MOVEMENT,
            Op(op, _STEP, rest=True, domain=INTERNAL * (op == "View"), dtypes=EVERY, attributes=EVERY, outputs=EVERY),
            to=step_after_movement,
        )
        for op in (*DATA_MOVEMENT, *POOLS)
    ],
    *[rule(STEP_AFTER_BOUNDS, Op(op, _STEP, rest=True), to=step_after_bounds) for op in BOUNDS],
    rule(
        "global max of codes",
        Op("ReduceMax", _STEP, rest=True, attributes=("axes", "keepdims")),
        to=global_pool("GlobalMaxPool"),
    ),
    *[
        rule("same codes again", Op("QuantizeCodes", x, domain=INTERNAL), to=requantized)
        for x in (_STEP, Coded("codes"))
    ],
    rule("step of one", _STEP, to=step_of_one),
    # ---- elementwise before views ----
    rule("quantize before a view", Op("QuantizeCodes", _VIEWED, domain=INTERNAL), to=swap_with_view),
    *[
        rule("elementwise before a view", Op(op, _VIEWED, attributes=EVERY), to=swap_with_view)
        for op in SCALAR_OPERATORS
    ],
    rule(
        "quantize before a transpose",
        Op("QuantizeCodes", Op("Transpose", Any("x"), key="view", attributes=("perm",)), domain=INTERNAL),
        to=swap_with_view,
    ),
]
