"""Rules for files of other exporters: constants of QDQ files, MatMulNBits, QONNX.

    DequantizeLinear of an initializer                    ->  a weight with scales (by channel or block), or a constant
    Gather(weight, i)                                     ->  Mul(Gather(levels, i), scales)

QuantizeLinear and DequantizeLinear of activations are in integers.py.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from subbyte import formats
from subbyte.dialect.binarize import Binarize
from subbyte.dialect.known_operators import QONNX
from subbyte.dialect.names import DOMAIN
from subbyte.errors import ModelError
from subbyte.formats import LowBitTensor, PerChannel, PerTensor
from subbyte.formats.integer import narrowest
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape, Value
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.rewrites.canonical_form import after
from subbyte.tvm_kernels.rewrites.code_values import RANGES, VIEWS
from subbyte.tvm_kernels.rewrites.pattern import EVERY, Any, Const, Op, Outcome, Rule, Weights, rule


def _scalar(graph: Graph, node: Node, index: int, default: float) -> Array:
    data = graph.constant_of(node.given(index)) if node.given(index) else np.array(default)
    if data is None:
        raise ModelError(f"node '{node.name}': its scale and zero point must be constants of the file")
    return data


# ---- QuantizeLinear, DequantizeLinear of constants ----


def dequantize_constant(graph: Graph, node: Node, q: Array) -> Outcome:
    """Weights of at most 8 bits become a weight with scales; wider ones, biases and others become float constants."""
    scale = _scalar(graph, node, 1, 1.0).astype(np.float32)
    zero = _scalar(graph, node, 2, 0).astype(np.int32)
    axis = int(node.attributes.get("axis", 1)) % max(1, q.ndim)
    output = graph.values[node.outputs[0]]
    block = int(node.attributes.get("block_size", 0))
    if block:
        _check_blocks(node, q.shape, scale.shape, zero.shape, axis, block)
    blocked = blocked_weight(q, scale, zero, axis, block) if block and q.ndim > 1 and q.dtype.itemsize == 1 else None
    if blocked is not None:
        return _becomes(graph, node, *blocked, True)
    if q.ndim > 1 and q.dtype.itemsize == 1 and not block and scale.ndim < 2:
        declared = graph.values[node.inputs[0]].declared or q.dtype.name
        return _becomes(graph, node, *weight_of(q, scale, zero, axis, declared), True)
    scales, zeros = (spread(values, axis, q.shape, block) for values in (scale, zero))
    output.data = ((q.astype(np.int32) - zeros).astype(np.float32) * scales).astype(np.float32)
    for user in graph.users(output.name) if q.ndim > 2 and block else ():
        user.fallback = (
            f"its blocks of {block} along axis {axis} are not groups of the input channels of one window position"
        )
    graph.remove(node)
    return True


def _becomes(graph: Graph, node: Node, tensor: LowBitTensor, order: Sequence[int], scaled: bool) -> Outcome:
    """The node's result is a low-bit constant."""
    output = graph.values[node.outputs[0]]
    output.weight, output.order, output.scaled = tensor, tuple(order), scaled
    graph.remove(node)
    return True


def _check_blocks(node: Node, shape: Shape, scale: Shape, zero: Shape, axis: int, block: int) -> None:
    wanted = tuple(-(-n // max(1, block)) if i == axis else n for i, n in enumerate(shape))
    if block < 0 or scale != wanted or zero not in ((), wanted):
        raise ModelError(
            f"node '{node.name}': scales of shape {list(scale)} and zero points of shape {list(zero)} do not fit "
            f"blocks of {block} along axis {axis} of {list(shape)}; the file is damaged, export it again"
        )


def spread(values: Array, axis: int, shape: Shape, block: int = 0) -> Array:
    """Scales or zero points, one for all, along an axis or for each block along it, to broadcast over that shape."""
    if values.size == 1:
        return values.reshape(())
    if block and values.ndim == len(shape):
        return np.repeat(values, block, axis).take(range(shape[axis]), axis)
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


Weight = tuple[LowBitTensor, tuple[int, ...]]  # and the order in which its axes are those of the operand


def weight_of(levels: Array, scale: Array, zero: Array, axis: int, name: str) -> Weight:
    """A weight with its scaled axis first, of as many bits as `name`; zero points are folded if the levels then fit."""
    order, granularity = _axis_first(scale, axis, levels.ndim)
    rows = _copied(levels, order)
    shape = granularity.scale_shape(rows.shape)
    points = np.broadcast_to(zero.reshape(-1) if shape else zero.reshape(()), shape).astype(np.int32)
    shifted = rows - points.reshape(-1, *[1] * (levels.ndim - 1)) if points.any() else rows
    low, high = (int(shifted.min()), int(shifted.max())) if shifted.size else (0, 0)
    signed = formats.get(name.removeprefix("u"))
    if signed.levels.values[0] <= low and high <= signed.levels.values[-1]:
        tensor = LowBitTensor.from_levels(signed, shifted, scale.reshape(shape), granularity)
    else:
        tensor = LowBitTensor.from_levels(formats.get(name), rows, scale.reshape(shape), granularity, points)
    return tensor, _inverse(order)


TILE = 128  # rows and columns


def _copied(values: Array, order: Sequence[int]) -> Array:
    """A copy with the axes in that order.

    A matrix is copied in tiles, each by way of a copy of its own: with rows of 2^n bytes, the columns of a tile would
    share a few lines of the cache (int8 [11008, 4096]: 0.04 s instead of 0.34 s).
    """
    if list(order) != [1, 0]:
        return np.ascontiguousarray(np.transpose(values, order))
    columns, rows = values.shape
    made = np.empty((rows, columns), values.dtype)
    for column in range(0, columns, TILE):
        for row in range(0, rows, TILE):
            tile = values[column : column + TILE, row : row + TILE].copy()
            made[row : row + TILE, column : column + TILE] = tile.T
    return made


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(order))


def _axis_first(scale: Array, axis: int, rank: int) -> tuple[list[int], PerTensor | PerChannel]:
    """The order of axes in which the scaled one is first, and the granularity of its scales."""
    if scale.size == 1:
        axis = rank - 1 if rank == 2 else 0  # a matrix is [depth, columns] in MatMul
    return [axis, *(i for i in range(rank) if i != axis)], PerTensor() if scale.size == 1 else PerChannel(0)


def blocked_weight(levels: Array, scale: Array, zero: Array, axis: int, block: int) -> Weight | None:
    """A weight with groups along `axis`, which is its last axis; None where a block crosses window positions."""
    rank = levels.ndim
    outputs = 1 - axis if rank == 2 else 0  # a matrix is [depth, columns] in MatMul
    if axis == outputs or (rank > 2 and levels.shape[axis] % block) or levels.size == 0:
        return None
    order = [outputs, *(i for i in range(rank) if i not in (outputs, axis)), axis]

    def rows(values: Array) -> Array:
        permuted = _copied(values, order)
        return permuted.reshape(permuted.shape[0], -1)

    granularity = formats.PerGroup(block)
    matrix = rows(levels)
    if zero.any():
        matrix = matrix - granularity.expand(rows(np.broadcast_to(zero, scale.shape)), matrix.shape)
    permuted = matrix.reshape([levels.shape[i] for i in order])
    fmt, scales = narrowest(int(matrix.min()), int(matrix.max())), rows(scale)
    if fmt is None:
        return None
    return LowBitTensor.from_levels(fmt, permuted, scales, granularity).with_scales_of_rows(), _inverse(order)


# ---- reshaped, transposed and indexed weights ----


def transposed_weight(graph: Graph, node: Node, w: Value) -> Outcome:
    return _becomes(graph, node, w.tensor, [w.order[axis] for axis in node.perm(len(w.order))], w.scaled)


def reshaped_weight(graph: Graph, node: Node, w: Value, **_: object) -> Outcome:
    """A weight of another shape, whose axis of scales stays what it is."""
    tensor, shape = w.tensor, graph.values[node.outputs[0]].shape
    if tensor.group_size:
        return "its scales are by group"
    axis = 0
    if tensor.scale.size > 1:
        before = w.order.index(0)
        count, elements = w.shape[before], math.prod(w.shape[:before])
        kept = [i for i, n in enumerate(shape) if n == count and math.prod(shape[:i]) == elements]
        if not kept:
            return f"its scales are by axis {before} of {list(w.shape)}, which is none of {list(shape)}"
        axis = kept[0]
    order, granularity = _axis_first(tensor.scale, axis, len(shape))
    payload = tensor.payload.transpose(w.order).reshape(shape).transpose(order)
    scales = granularity.scale_shape(payload.shape)
    zero = None if tensor.zero_point is None else tensor.zero_point.reshape(scales)
    made = LowBitTensor(payload, tensor.scale.reshape(scales), granularity, zero)
    return _becomes(graph, node, made, _inverse(order), w.scaled)


def scaled_weight(graph: Graph, node: Node, w: Value, scale: Array) -> Outcome:
    """Mul(levels, scale), with a scale along one channel axis, is a weight with scales."""
    if w.scaled:
        return "its weights have scales already"
    rank = len(w.order)
    shape = (1,) * (rank - scale.ndim) + scale.shape
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if len(shape) != rank or len(long) > 1 or (long and w.order[long[0]] != 0):
        return f"its factor of shape {list(scale.shape)} is neither a scalar nor per output channel of {list(w.shape)}"
    granularity = PerChannel(0) if long else PerTensor()
    values = scale.astype(np.float32).reshape(-1 if long else ())
    tensor = replace(w.tensor, scale=values, granularity=granularity)
    return _becomes(graph, node, tensor, w.order, True)


def gathered_weight(graph: Graph, node: Node, w: Value, i: str) -> Outcome:
    """Gather of a quantized table becomes Gather of its levels, a byte each, and of its scales and zero points."""
    tensor, output = w.tensor, graph.values[node.outputs[0]]
    if tensor.group_size:
        return "its scales are by group"
    levels = tensor.integers()
    factors: list[tuple[str, Array]] = [("Mul", tensor.scale)] if w.scaled else []
    if levels.size and np.ptp(levels) > 255:  # zero points by row: levels of the file, and a Sub
        assert tensor.zero_point is not None
        levels, factors = tensor.levels(), [("Sub", tensor.zero_point), *factors]
    low, high = min(0, int(levels.min(initial=0))), int(levels.max(initial=0))
    storage = ops.Codes(-128, 127, 128) if -128 <= low < 0 and high <= 127 else ops.Codes(low, high, -low)
    table = np.transpose(levels + storage.zero_point, w.order).astype(np.uint8)
    axis = int(node.attributes.get("axis", 0)) % table.ndim
    chosen = graph.values[i].shape

    def rows(values: Array, shape: Shape) -> str:
        return graph.emit("Gather", [graph.constant(values), i], shape, output.name, node, attributes={"axis": axis})

    def beside(values: Array) -> str:
        """A constant by channel of the table, shaped to broadcast over its rows."""
        if values.size == 1:
            return graph.constant(values.astype(np.float32).reshape((1,) * bool(output.shape)))
        channel = w.order.index(0)
        broad = spread(values.astype(np.float32).reshape(-1), channel, table.shape)
        shape = (*broad.shape[:axis], *(chosen if channel == axis else [1] * len(chosen)), *broad.shape[axis + 1 :])
        return rows(broad, shape) if channel == axis else graph.constant(broad.reshape(shape))

    x = rows(table, output.shape)
    graph.values[x].storage = storage
    for op, values in factors:
        x = graph.emit(op, [x, beside(values)], output.shape, output.name, node)
    last, output.storage = graph.producer(x), graph.values[x].storage
    assert last is not None
    graph.remove(node)
    graph.set_outputs(last, node.outputs)
    return True


def fake_quantized_weight(graph: Graph, node: Node, w: Array) -> Outcome:
    """QuantizeLinear of a float constant, as some trainers export it: computed here."""
    output = graph.values[node.outputs[0]]
    if node.attributes.get("block_size", 0):
        return "its scales are by block; handled: by tensor and by axis"
    if output.dtype not in RANGES:
        return f"it makes {output.dtype}; handled: {', '.join(sorted(RANGES))}"
    step, zero = _scalar(graph, node, 1, 1.0), _scalar(graph, node, 2, 0)
    axis = int(node.attributes.get("axis", 1)) % max(1, w.ndim)
    scaled = np.rint(w.astype(np.float32) / spread(step, axis, w.shape)) + spread(zero, axis, w.shape)
    low, high = RANGES[output.dtype]
    output.data = np.clip(scaled, low, high).astype(np.int8 if low < 0 else np.uint8)
    output.declared, output.dtype = output.dtype, output.data.dtype.name
    graph.remove(node)
    return True


# ---- MatMulNBits ----


def nbits_product(graph: Graph, node: Node, x: str, packed: Array, scale: Array) -> Outcome:
    """Weight-only quantization: MatMul with the dequantized weights, named as a fallback in the report."""
    bits, depth, columns = (int(node.attributes[k]) for k in ("bits", "K", "N"))
    block = int(node.attributes["block_size"])
    if min(depth, columns, block) < 1:
        raise ModelError(
            f"node '{node.name}': MatMulNBits with K {depth}, N {columns}, block_size {block}; all are positive"
        )
    groups = -(-depth // block)
    if bits not in (2, 4, 8) or packed.size != columns * groups * block * bits // 8 or scale.size != columns * groups:
        raise ModelError(
            f"node '{node.name}': payload or scales of MatMulNBits do not fit its K, N, bits and block size"
        )
    if node.given(4):
        raise ModelError(f"node '{node.name}': MatMulNBits with g_idx is not supported; export without reordering")
    codes = formats.unpack(packed.reshape(columns * groups, -1).astype(np.uint8), bits, block)
    zero: Array = np.full((columns * groups, 1), 1 << (bits - 1), np.float32)
    if node.given(3):
        points = graph.constant_of(node.given(3))
        if points is None:
            raise ModelError(f"node '{node.name}': zero points of MatMulNBits must be constants")
        if points.dtype == np.uint8:
            row = -(-groups * bits // 8)
            if points.size != columns * row:
                raise ModelError(f"node '{node.name}': {points.size} bytes of zero points, expected {columns} x {row}")
            # The padding of a row may have any value: onnxruntime's quantizer writes 8.
            whole = formats.unpack(points.reshape(columns, row), bits, 8 * row // bits)
            zero = whole[:, :groups].reshape(-1, 1).astype(np.float32)
        else:
            zero = points.reshape(-1, 1).astype(np.float32)
    values = (codes.astype(np.float32) - zero) * scale.reshape(-1, 1).astype(np.float32)
    matrix = values.reshape(columns, groups * block)[:, :depth].T.astype(np.float32)
    reason = f"weights are {bits}-bit, but the activation has no quantizer (weight-only MatMulNBits)"
    output = node.outputs
    product = Node("MatMul", [x, graph.constant(np.ascontiguousarray(matrix), "weight")], output, {}, node.name)
    product.fallback = reason
    graph.replace_node(node, product)
    if bias := node.given(5):
        after(graph, product, "Add", bias)
    return True


# ---- QONNX ----


def _quant_range(node: Node, bits: int) -> tuple[int, int]:
    signed, narrow = int(node.attributes.get("signed", 1)), int(node.attributes.get("narrow", 0))
    if node.attributes.get("rounding_mode", "ROUND") not in ("ROUND", "HALF_EVEN"):
        raise ModelError(f"node '{node.name}': QONNX rounding mode {node.attributes['rounding_mode']} is not supported")
    if signed:
        return -(1 << (bits - 1)) + narrow, (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1 - narrow


def _width(node: Node, bits: Array) -> int:
    """One number of bits, 1 to 8."""
    given = bits.reshape(-1)
    if not given.size or (given != given[0]).any() or given[0] not in range(1, 9):
        listed = ", ".join(f"{value:g}" for value in np.unique(given)[:4])
        raise ModelError(
            f"node '{node.name}': QONNX Quant to {listed} bits; handled: one whole number of 1 to 8 bits for a tensor"
        )
    return int(given[0])


def _is_sign(node: Node, width: int, scale: Array, zero: Array) -> bool:
    """Whether a Quant is a BipolarQuant: in QONNX one signed bit, narrow or not, has the levels -1 and +1."""
    return width == 1 and bool(node.attributes.get("signed", 1)) and bool((scale > 0).all()) and not np.any(zero)


def qonnx_weight(graph: Graph, node: Node, w: Array, scale: Array, zero: Array, bits: Array) -> Outcome:
    width = _width(node, bits)
    if w.ndim > 1 and _is_sign(node, width, scale, zero):
        return qonnx_binary_weight(graph, node, w, scale)
    if np.any(zero) or width < 2 or w.ndim < 2:
        raise ModelError(
            f"node '{node.name}': QONNX Quant of weights is supported for 2 to 8 bits, or 1 signed bit with positive "
            "scales, and zero point 0"
        )
    low, high = _quant_range(node, width)
    levels = np.clip(np.rint(w.astype(np.float32) / scale.astype(np.float32)), low, high).astype(np.int32)
    fmt = formats.get(f"int{width}" if low < 0 else f"uint{width}")
    tensor = LowBitTensor.from_levels(fmt, levels, np.float32(1), PerTensor())
    return _scaled_constant(graph, node, tensor, scale)


def qonnx_binary_weight(graph: Graph, node: Node, w: Array, scale: Array) -> Outcome:
    tensor = LowBitTensor.from_levels(formats.get("binary"), np.where(w >= 0, 1, -1), np.float32(1), PerTensor())
    return _scaled_constant(graph, node, tensor, scale)


def _scaled_constant(graph: Graph, node: Node, tensor: LowBitTensor, scale: Array) -> Outcome:
    name = graph.weight(tensor, range(len(tensor.shape)), False, node.outputs[0])
    factor = graph.constant(scale.astype(np.float32), "scale")
    graph.replace_node(node, Node("Mul", [name, factor], node.outputs, {}, node.name))
    return True


def qonnx_activation(graph: Graph, node: Node, x: str, scale: Array, zero: Array, bits: Array) -> Outcome:
    width = _width(node, bits)
    if _is_sign(node, width, scale, zero):
        return qonnx_binary_activation(graph, node, x, scale)
    signed_bit = width == 1 and node.attributes.get("signed", 1)
    if scale.size != 1 or np.any(zero) or signed_bit:
        raise ModelError(
            f"node '{node.name}': QONNX Quant of activations is supported per tensor, zero point 0, to 8 bits"
        )
    low, high = _quant_range(node, width)
    step = float(np.float32(scale.reshape(-1)[0]))
    storage = ops.Codes(low, high, 0 if low >= 0 else 128)
    attributes = {"factor": step, "storage": storage, "divide": True}
    quantized = Node("QuantizeCodes", [x], node.outputs, attributes, node.name, INTERNAL)
    graph.replace_node(node, quantized)
    after(graph, quantized, "Mul", graph.constant(ops.constant(step), "step"))
    graph.values[quantized.outputs[0]].storage = storage
    return True


def qonnx_binary_activation(graph: Graph, node: Node, x: str, scale: Array) -> Outcome:
    threshold = graph.constant(ops.constant(0), "threshold")
    binarize = Node(Binarize.name, [x, threshold], node.outputs, {}, node.name, DOMAIN)
    graph.replace_node(node, binarize)
    after(graph, binarize, "Mul", graph.constant(scale.astype(np.float32), "scale"))
    return True


QDQ: dict[str, typing.Any] = {
    "rest": True,
    "dtypes": ("float32", "codes", *RANGES),
    "attributes": ("axis", "block_size", "output_dtype", "saturate"),  # saturate: of 8-bit floats alone
}
QUANT = ("signed", "narrow", "rounding_mode")
RULES: list[Rule] = [
    # ---- QuantizeLinear, DequantizeLinear of constants ----
    rule("QDQ float weight", Op("QuantizeLinear", Const("w"), **QDQ), to=fake_quantized_weight),
    rule("QDQ weight", Op("DequantizeLinear", Const("q"), **QDQ), to=dequantize_constant),
    # ---- weights by blocks ----
    rule(
        "MatMulNBits",
        Op(
            "MatMulNBits",
            *(Any("x"), Const("packed"), Const("scale")),
            domain="com.microsoft",
            rest=True,
            attributes=("K", "N", "bits", "block_size", "accuracy_level"),
        ),
        to=nbits_product,
    ),
    # ---- QONNX ----
    rule(
        "QONNX weight",
        Op("Quant", Const("w"), Const("scale"), Const("zero"), Const("bits"), domain=QONNX, attributes=QUANT),
        to=qonnx_weight,
    ),
    rule("QONNX binary weight", Op("BipolarQuant", Const("w"), Const("scale"), domain=QONNX), to=qonnx_binary_weight),
    rule(
        "QONNX step",
        Op("Quant", Any("x"), Const("scale"), Const("zero"), Const("bits"), domain=QONNX, attributes=QUANT),
        to=qonnx_activation,
    ),
    rule(
        "QONNX binary activation",
        Op("BipolarQuant", Any("x"), Const("scale"), domain=QONNX),
        to=qonnx_binary_activation,
    ),
    # ---- reshaped, transposed and indexed weights ----
    rule("transposed weight", Op("Transpose", Weights("w"), attributes=("perm",)), to=transposed_weight),
    *[
        rule("reshaped weight", Op(op, Weights("w"), rest=True, dtypes=EVERY, attributes=EVERY), to=reshaped_weight)
        for op in VIEWS
    ],
    rule("scaled weight", Op("Mul", Weights("w"), Const("scale")), to=scaled_weight),
    rule(
        "rows of a table",
        Op("Gather", Weights("w", integers=True), Any("i", constants=True), dtypes=EVERY, attributes=("axis",)),
        to=gathered_weight,
    ),
]
