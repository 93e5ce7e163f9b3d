"""Products; the next stage fuses the operators after them.

Conv | MatMul (codes, low-bit weights)   ->  Product; before some by group an Unfold
Conv | MatMul (float, low-bit weights)   ->  Product, weight-only; with `fallback` where the file quantizes both
Conv | MatMul (codes, real | constant)   ->  the same of floats, a fallback
Conv | MatMul (float, constant)          ->  Product
ReduceSum or ones-Conv of codes, pools   ->  Pool2d
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from subbyte.errors import CompileError, FormatError
from subbyte.formats import BINARY_LEVELS, LowBitTensor
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape, Value
from subbyte.tvm_kernels.operators.unfold import unfolded_weight, windows_as_rows
from subbyte.tvm_kernels.rewrites.code_values import ALONG_REDUCTION, binary_to_codes, lost_quantizer, product_input
from subbyte.tvm_kernels.rewrites.geometry import conv_geometry, over_axes
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import WINDOW, Any, Coded, Const, Op, Outcome, Rule, Weights, decline, rule

# ---- weights ----


def _channels_last(w: Array) -> Array:
    """[out, in, kernel...] to [out, kernel_h, kernel_w, in]."""
    if w.ndim == 3:
        w = w[:, :, None, :]
    return np.ascontiguousarray(np.transpose(w, (0, 2, 3, 1)))


def output_channel_first(weight: Value, axis: int) -> LowBitTensor | None:
    """The tensor whose rows are `axis` of the operand, other axes in order; None where groups prevent that."""
    order = [weight.order[axis], *(at for i, at in enumerate(weight.order) if i != axis)]
    tensor = weight.tensor
    if order == sorted(order):
        return tensor
    if tensor.group_size or (tensor.zero_point is not None and tensor.zero_point.size > 1):
        return None
    return tensor.without_scale().transpose(order)


def conv_weight(weight: Value) -> LowBitTensor | None:
    """[out, in, kernel...] in the product's layout, [out, kernel_h, kernel_w, in]; None where groups prevent it."""
    places = tuple(weight.shape[2:]) if len(weight.shape) == 4 else (1, *weight.shape[2:])
    shape = (weight.shape[0], *places, weight.shape[1])
    last = [weight.order[axis] for axis in (0, *range(2, len(weight.order)), 1)]
    if last == list(range(len(last))):  # groups along the channels of a window position, as in DequantizeLinear
        return weight.tensor.reshape(shape)
    tensor = output_channel_first(weight, 0)
    if tensor is None:
        return None
    if int(np.prod(places)) == 1 or tensor.shape[1] == 1:
        return tensor.reshape(shape)
    if tensor.group_size:
        return None
    return tensor.reshape((shape[0], shape[3], *places)).transpose((0, 2, 3, 1))


def check_sums(name: str, depth: int, storage: ops.Codes | ops.Bits, tensor: LowBitTensor) -> None:
    """Refuse a layer whose sums could overflow int32."""
    try:
        check_accumulator(depth, storage.largest, tensor.largest)
    except FormatError as error:
        raise CompileError(f"'{name}': {error}") from error


def no_bits(value: Value, axis: int, tensor: LowBitTensor | None) -> str:
    """Why a product over `axis` of packed bits cannot be computed on bits; empty where it can, and for codes."""
    if value.bits is None:
        return ""
    if value.bits.channels != value.shape[axis]:
        return f"'{value.name}' is packed along another axis than the {value.shape[axis]} channels that it adds up"
    if tensor is None:
        return "its groups of scales cross the positions of its window"
    return "" if tensor.format.levels == BINARY_LEVELS else f"its weights are {tensor.format.name}; handled: binary"


def no_matrices(x: Shape, weight: Shape) -> str:
    """Why a MatMul with weights is declined for its shapes."""
    return f"its operands are {list(x)} and {list(weight)}; handled: weights of 2 axes, a left operand of 2 or more"


# ---- quantized products ----


def quantized_conv(graph: Graph, node: Node, codes: str, weight: Value) -> Outcome:
    value = graph.values[codes]
    groups = int(node.attributes.get("group", 1))
    geometry = conv_geometry(value.shape, weight.shape, node.attributes, groups)
    if geometry is None:
        return over_axes(value.shape)
    tensor = conv_weight(weight)
    if value.bits is not None:
        padded_with_zero = any(geometry.padding) and not node.attributes.get("pads_with")
        if why := "it pads with 0, which is not a binary value" if padded_with_zero else no_bits(value, 1, tensor):
            return with_codes(graph, node, codes, why)
    if tensor is None:
        return unfolded_conv(graph, node, codes, weight, geometry)
    storage = value.codes or value.bits
    assert storage is not None
    check_sums(node.name, geometry.depth, storage, tensor)
    operator = ops.Product(node.name, storage, tensor, geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], 1, "NHWC")
    return True


def unfolded_conv(graph: Graph, node: Node, codes: str, weight: Value, window: ops.Conv2d) -> Outcome:
    """A convolution whose groups of scales cross the positions of its window: a 1x1 convolution after im2col."""
    found, storage = unfolded_weight(output_channel_first(weight, 0)), graph.values[codes].codes
    if found is None:
        return without_quantizer(graph, node, codes, weight, "its groups of scales run across the output channels")
    order, tensor = found
    assert storage is not None
    check_sums(node.name, window.depth, storage, tensor)
    rows = windows_as_rows(graph, node, codes, window, order)
    elements = window.groups * window.depth
    geometry = ops.Conv2d(window.batch, window.out_height, window.out_width, elements, window.out_channels, (1, 1))
    geometry = replace(geometry, groups=window.groups)
    operator = ops.Product(node.name, storage, tensor, geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [rows], 1, "NHWC")
    return True


def quantized_matmul(graph: Graph, node: Node, codes: str, weight: Value) -> Outcome:
    value = graph.values[codes]
    if len(weight.shape) != 2 or len(value.shape) < 2:
        return no_matrices(value.shape, weight.shape)
    tensor = output_channel_first(weight, 1)
    if tensor is None:
        return without_quantizer(graph, node, codes, weight, "its groups of scales run across the reduction")
    if why := no_bits(value, -1, tensor):
        return with_codes(graph, node, codes, why)
    storage = value.codes or value.bits
    assert storage is not None
    depth, columns = weight.shape
    check_sums(node.name, depth, storage, tensor)
    rows = value.size // depth
    operator = ops.Product(node.name, storage, tensor, ops.MatMul(rows, depth, columns), ops.Epilogue())
    kernel_node(graph, node, operator, [codes], -1, "as-is")
    return True


def with_codes(graph: Graph, node: Node, bits: str, why: str) -> Outcome:
    """A product that does not support bits (zero padding, other weights) gets the same values as codes, exactly."""
    decline(graph, node, "product of binary values", why)
    values = product_input(graph, bits, node)
    graph.set_inputs(node, [binary_to_codes(graph, values, node), *node.inputs[1:]])
    return True


def without_quantizer(graph: Graph, node: Node, x: str, weight: Value, reason: str) -> Outcome:
    """The float fallback: dequantized weights, and the reason for the report."""
    node.fallback = node.fallback or reason
    if graph.values[x].coded:
        x = product_input(graph, x, node)
    name = graph.constant(weight.floats(), "weight")
    graph.set_inputs(node, [x, name, *node.inputs[2:]])
    return True


def real_levels(graph: Graph, node: Node, codes: str, weight: Value) -> Outcome:
    """A product of codes with real levels is computed in float: its products are not integers."""
    node.fallback = f"its activation is quantized, but levels of {weight.tensor.format.name} are real numbers"
    graph.set_inputs(node, [product_input(graph, codes, node), *node.inputs[1:]])
    return True


def float_weights(graph: Graph, node: Node, codes: str, w: Array) -> Outcome:
    """A product of codes with float32 weights is computed in float; `name_float_products` gives the reason."""
    if w.dtype != np.float32:
        return f"its weights are {w.dtype}; handled: float32"
    graph.set_inputs(node, [product_input(graph, codes, node), *node.inputs[1:]])
    return True


def weight_only(graph: Graph, node: Node, x: str, weight: Value) -> Outcome:
    """Floats times levels, with the scale of each output channel after the sum.

    A fallback where the file quantizes the activation, but the product reads float32.
    """
    value, is_conv = graph.values[x], node.op == "Conv"
    if not weight.scales_follow(0 if is_conv else -1):
        return without_quantizer(graph, node, x, weight, ALONG_REDUCTION)
    if not node.fallback and (lost := lost_quantizer(graph, x)):
        node.fallback = f"weights are {weight.tensor.format.name}, but its activation '{x}' {lost}"
    geometry: ops.Conv2d | ops.MatMul | None = None
    if is_conv:
        groups = int(node.attributes.get("group", 1))
        geometry = conv_geometry(value.shape, weight.shape, node.attributes, groups)
    elif len(weight.shape) == 2 and len(value.shape) > 1:
        geometry = ops.MatMul(value.size // weight.shape[0], *weight.shape)
    tensor = None
    if geometry is not None:
        tensor = conv_weight(weight) if is_conv else output_channel_first(weight, 1)
    if geometry is None or tensor is None:
        reason = f"weights are {weight.tensor.format.name}, but no kernel is such a {node.op} of floats with them"
        return without_quantizer(graph, node, x, weight, reason)
    by_channel = weight.scaled and not weight.tensor.group_size
    steps = (ops.Scale(ops.constant(weight.tensor.scale)),) if by_channel else ()
    operator = ops.Product(node.name, ops.Float(), tensor, geometry, ops.Epilogue(steps))
    kernel_node(graph, node, operator, [x], *((1, "NHWC") if is_conv else (-1, "as-is")))
    return True


# ---- float products ----


def float_conv(graph: Graph, node: Node, x: str, w: Array) -> Outcome:
    groups = int(node.attributes.get("group", 1))
    geometry = conv_geometry(graph.values[x].shape, w.shape, node.attributes, groups)
    if geometry is None or w.dtype != np.float32:
        return over_axes(w.shape) if geometry is None else f"its weights are {w.dtype}; handled: float32"
    operator = ops.Product(node.name, ops.Float(), ops.FloatWeight(_channels_last(w)), geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [x], 1, "NHWC")
    return True


def float_matmul(graph: Graph, node: Node, x: str, w: Array) -> Outcome:
    value = graph.values[x]
    if w.ndim != 2 or len(value.shape) < 2:
        return no_matrices(value.shape, w.shape)
    if w.dtype != np.float32:
        return f"its weights are {w.dtype}; handled: float32"
    depth, columns = w.shape
    geometry = ops.MatMul(value.size // depth, depth, columns)
    operator = ops.Product(node.name, ops.Float(), ops.FloatWeight(np.ascontiguousarray(w.T)), geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [x], -1, "as-is")
    return True


RULES: list[Rule] = [
    # ---- low bit ----
    rule(
        "quantized convolution",
        Op("Conv", Coded("codes"), Weights("weight", integers=True), attributes=WINDOW),
        to=quantized_conv,
    ),
    rule(
        "quantized matrix product", Op("MatMul", Coded("codes"), Weights("weight", integers=True)), to=quantized_matmul
    ),
    *(
        rule(
            "codes by real levels",
            Op(op, Coded("codes"), Weights("weight", integers=False), attributes=names),
            to=real_levels,
        )
        for op, names in (("Conv", WINDOW), ("MatMul", ()))
    ),
    rule("weight-only product", Op("Conv", Any("x"), Weights("weight"), rest=True, attributes=WINDOW), to=weight_only),
    rule("weight-only product", Op("MatMul", Any("x"), Weights("weight"), rest=True), to=weight_only),
    # ---- float ----
    rule("convolution", Op("Conv", Any("x"), Const("w"), attributes=WINDOW), to=float_conv),
    rule("matrix product", Op("MatMul", Any("x"), Const("w")), to=float_matmul),
]

# After the rules of pools, which are convolutions of codes with ones.
OF_FLOAT_WEIGHTS: list[Rule] = [
    rule("codes by float weights", Op("Conv", Coded("codes"), Const("w"), attributes=WINDOW), to=float_weights),
    rule("codes by float weights", Op("MatMul", Coded("codes"), Const("w")), to=float_weights),
]
