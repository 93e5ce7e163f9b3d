"""Products, pools, norms: the nodes that a kernel starts from. What follows them is fused by the next stage.

Conv | MatMul (codes, low-bit weights)   ->  QuantizedProduct
Conv | MatMul (float, constant)          ->  FloatProduct; with `fallback` where the file asked for low bit
MatMul (two run-time tensors)            ->  BatchMatMul
ReduceSum or ones-Conv of codes, pools   ->  Pool2d
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from subbyte.errors import CompileError, FormatError
from subbyte.formats import LowBitTensor, PerGroup, PerTensor
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape, Weight, levels_of
from subbyte.tvm_kernels.rewrites.pattern import Any, Coded, Const, Op, Rule, Weights, rule


def kernel_node(
    graph: Graph, node: Node, operator: ops.Operator, inputs: list[str], axis: int | None, reads: str, **fields: object
) -> Node:
    """Put a node that carries `operator` in the place of an ONNX node; it makes the same values."""
    made = Node(type(operator).__name__, inputs, node.outputs, {}, node.name, "kernel", operator)
    made.own_inputs, made.axis, made.reads = len(inputs), axis, reads
    made.fallback = node.fallback
    for key, value in fields.items():
        setattr(made, key, value)
    graph.replace_node(node, made)
    return made


# ---- geometry ----


def conv_geometry(x: Shape, w: Shape, attributes: dict[str, object], groups: int) -> ops.Conv2d | None:
    """The geometry of an ONNX window (rank 3 or 4, pads written out); w is [out, in / groups, kernel...]."""
    rank = len(x) - 2
    if rank not in (1, 2):
        return None
    kernel, stride, dilation, pads = (list(attributes[k]) for k in ("kernel_shape", "strides", "dilations", "pads"))  # type: ignore[call-overload]
    height, width = (1, x[2]) if rank == 1 else (x[2], x[3])
    if rank == 1:
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        pads = [0, pads[0], 0, pads[1]]
    return ops.Conv2d(
        batch=x[0],
        height=height,
        width=width,
        channels=x[1],
        out_channels=w[0],
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=(pads[0], pads[1], pads[2], pads[3]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
    )


def _same_size(geometry: ops.Conv2d, y: Shape) -> bool:
    """Whether the geometry gives the output that ONNX inferred (ceil_mode may differ)."""
    spatial = (geometry.out_height, geometry.out_width)
    return spatial == ((1, y[2]) if len(y) == 3 else (y[2], y[3]))


def _channels_last(w: Array) -> Array:
    """[out, in, kernel...] to [out, kernel_h, kernel_w, in]."""
    if w.ndim == 3:
        w = w[:, :, None, :]
    return np.ascontiguousarray(np.transpose(w, (0, 2, 3, 1)))


# ---- weights ----


def output_channel_first(weight: Weight, axis: int) -> LowBitTensor | None:
    """The tensor whose rows are `axis` of the operand, other axes in order; None where groups forbid the change."""
    rank = len(weight.order)
    wanted = [axis, *(i for i in range(rank) if i != axis)]
    order = [weight.order[i] for i in wanted]
    if order == list(range(rank)):
        return weight.tensor
    tensor = weight.tensor
    if isinstance(tensor.granularity, PerGroup) or (tensor.zero_point is not None and tensor.zero_point.size > 1):
        return None
    levels = np.transpose(tensor.levels(), order)
    return LowBitTensor.from_levels(tensor.format, levels, np.float32(1), PerTensor(), tensor.zero_point)


def conv_weight(weight: Weight) -> LowBitTensor | None:
    """[out, in, kernel...] as the product wants it: [out, kernel_h, kernel_w, in]."""
    tensor = output_channel_first(weight, 0)
    if tensor is None:
        return None
    if int(np.prod(tensor.shape[2:])) == 1:
        return replace(tensor, shape=(tensor.shape[0], 1, 1, tensor.shape[1]))
    if isinstance(tensor.granularity, PerGroup):
        return None
    levels = _channels_last(tensor.levels())
    return LowBitTensor.from_levels(tensor.format, levels, tensor.scale, tensor.granularity, tensor.zero_point)


def check_sums(name: str, depth: int, storage: ops.Storage, tensor: LowBitTensor) -> None:
    """Refuse a layer whose sums could leave int32."""
    largest = storage.largest if isinstance(storage, ops.Codes) else 1
    try:
        check_accumulator(depth, largest, int(np.abs(levels_of(tensor)).max(initial=0)))
    except FormatError as error:
        raise CompileError(f"'{name}': {error}") from error


def fits_bits(storage: ops.Storage, tensor: LowBitTensor) -> bool:
    """Bits only meet binary weights."""
    return not isinstance(storage, ops.Bits) or tensor.format.name == "binary"


# ---- quantized products ----


def quantized_conv(graph: Graph, node: Node, codes: str, weight: Weight) -> bool:
    value = graph.values[codes]
    groups = int(node.attributes.get("group", 1))
    geometry = conv_geometry(value.shape, weight.shape, node.attributes, groups)
    if geometry is None:
        return False
    tensor = conv_weight(weight)
    if isinstance(value.storage, ops.Bits):
        padded_with_zero = any(geometry.padding) and not node.attributes.get("pads_with")
        wrong_axis = value.storage.channels != value.shape[1]
        if padded_with_zero or wrong_axis or tensor is None or not fits_bits(value.storage, tensor):
            return signs_as_codes(graph, node, codes)
    if tensor is None:
        return without_quantizer(
            graph, node, codes, weight, "scales by group inside of a convolution window have no kernel"
        )
    assert isinstance(value.storage, ops.Codes | ops.Bits)
    check_sums(node.name, geometry.depth, value.storage, tensor)
    operator = ops.QuantizedProduct(node.name, geometry, value.storage, tensor, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], 1, "NHWC")
    return True


def quantized_matmul(graph: Graph, node: Node, codes: str, weight: Weight) -> bool:
    value = graph.values[codes]
    if len(weight.shape) != 2 or len(value.shape) < 2:
        return False
    tensor = output_channel_first(weight, 1)
    along_last = not isinstance(value.storage, ops.Bits) or value.storage.channels == value.shape[-1]
    if tensor is None:
        return without_quantizer(graph, node, codes, weight, "its groups of scales run across the reduction")
    if not along_last or not fits_bits(value.storage, tensor):
        return signs_as_codes(graph, node, codes)
    assert isinstance(value.storage, ops.Codes | ops.Bits)
    depth, columns = weight.shape
    check_sums(node.name, depth, value.storage, tensor)
    rows = value.size // depth
    operator = ops.QuantizedProduct(node.name, ops.MatMul(rows, depth, columns), value.storage, tensor, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], -1, "as-is")
    return True


def signs_as_codes(graph: Graph, node: Node, codes: str) -> bool:
    """A product that bits cannot serve (zero padding, other weights) gets the same signs as codes, exactly."""
    shape = graph.values[codes].shape
    signs = graph.emit("UnpackBits", [codes], shape, codes, node, domain="subbyte")
    if node.attributes.get("pads_with"):  # codes are padded with 0, so +1 is put around them here
        pads = np.array(node.attributes["pads"]).reshape(2, -1)
        around = np.pad(pads, [(0, 0), (2, 0)])
        shape = tuple(int(d) for d in np.array(shape) + around.sum(axis=0))
        amounts = [graph.constant(around.reshape(-1).astype(np.int64)), graph.constant(np.float32(1))]
        signs = graph.emit("Pad", [signs, *amounts], shape, codes, node)
        node.attributes = {**node.attributes, "pads": [0] * pads.size, "pads_with": 0}
    storage = ops.Codes(-1, 1, 128)
    attributes = {"factor": 1.0, "storage": storage, "divide": False}
    again = graph.emit("QuantizeCodes", [signs], shape, codes, node, domain="subbyte", attributes=attributes)
    graph.values[again].storage = storage
    graph.set_inputs(node, [again, *node.inputs[1:]])
    return True


def without_quantizer(graph: Graph, node: Node, x: str, weight: Weight, reason: str) -> bool:
    """The float path: dequantized weights, and the reason for the report."""
    node.fallback = reason
    if not isinstance(graph.values[x].storage, ops.Float):
        x = as_float(graph, x, node)
    name = graph.constant(np.ascontiguousarray(weight.value(), np.float32), "weight")
    graph.set_inputs(node, [x, name, *node.inputs[2:]])
    return True


def no_quantizer(graph: Graph, node: Node, x: str, weight: Weight) -> bool:
    bits = weight.tensor.format
    if not isinstance(graph.values[x].storage, ops.Float):
        return False
    return without_quantizer(
        graph, node, x, weight, f"weights are {bits.name}, but its activation '{x}' has no quantizer"
    )


# ---- codes that something else reads ----


def as_float(graph: Graph, codes: str, like: Node) -> str:
    """The integer levels of codes (or the signs of bits) as float32: a sum over windows of one element."""
    value = graph.values[codes]
    if isinstance(value.storage, ops.Bits):
        return graph.emit("UnpackBits", [codes], value.shape, codes, like, domain="subbyte")
    assert isinstance(value.storage, ops.Codes)
    channels = value.shape[-1] if value.shape else 1
    rows = value.size // channels
    window = ops.Conv2d(1, rows, 1, channels, channels, (1, 1), groups=channels)
    operator = ops.Pool2d(like.name, "sum", window, value.storage, ops.Epilogue())
    output = graph.emit("Pool2d", [codes], value.shape, codes, like, domain="kernel", operator=operator, reads="same")
    return output


def coded_inputs_as_float(graph: Graph) -> None:
    """Nodes that stay ONNX read levels as float32; low-bit weights they read become plain constants."""
    moves = ("View", "Transpose", "Slice", "Gather", "Split", "Concat")
    for node in graph.order():
        for name in list(dict.fromkeys(node.inputs)):
            if not name:
                continue
            value = graph.values[name]
            if value.weight is not None and value.data is None:
                value.data, value.weight = np.ascontiguousarray(value.weight.value(), np.float32), None
            if node.operator is not None or isinstance(value.storage, ops.Float) or node.op == "UnpackBits":
                continue
            if node.op in moves and graph.values[node.outputs[0]].storage == value.storage:
                continue
            graph.replace_uses(name, as_float(graph, name, node), [node])
    for index, name in enumerate(graph.outputs):
        value = graph.values[name]
        producer = graph.producer(name)
        if isinstance(value.storage, ops.Float) or producer is None:
            continue
        inner = graph.fresh(name)
        graph.add_value(inner, value.dtype, value.shape, storage=value.storage, holds=name)
        graph.set_outputs(producer, [inner if output == name else output for output in producer.outputs])
        graph.replace_uses(name, inner)
        levels = as_float(graph, inner, producer)
        made = graph.producer(levels)
        assert made is not None
        if value.dtype == "float32":
            value.storage = ops.Float()
            graph.set_outputs(made, [graph.outputs[index]])
            continue
        assert isinstance(value.storage, ops.Codes)
        zero = value.storage.zero_point - (128 if value.dtype == "int8" else 0)
        moved = graph.emit("Add", [levels, graph.constant(np.float32([zero]))], value.shape, name, producer)
        value.storage = ops.Float()
        to = {"uint8": 2, "int8": 3}[value.dtype]
        graph.add(Node("Cast", [moved], [name], {"to": to}, producer.name))


# ---- float products ----


def float_conv(graph: Graph, node: Node, x: str, w: Array) -> bool:
    groups = int(node.attributes.get("group", 1))
    geometry = conv_geometry(graph.values[x].shape, w.shape, node.attributes, groups)
    if geometry is None or w.dtype != np.float32 or not isinstance(graph.values[x].storage, ops.Float):
        return False
    operator = ops.FloatProduct(node.name, geometry, _channels_last(w), ops.Epilogue())
    kernel_node(graph, node, operator, [x], 1, "NHWC")
    return True


def float_matmul(graph: Graph, node: Node, x: str, w: Array) -> bool:
    value = graph.values[x]
    if w.ndim != 2 or w.dtype != np.float32 or len(value.shape) < 2 or not isinstance(value.storage, ops.Float):
        return False
    depth, columns = w.shape
    geometry = ops.MatMul(value.size // depth, depth, columns)
    operator = ops.FloatProduct(node.name, geometry, np.ascontiguousarray(w.T), ops.Epilogue())
    kernel_node(graph, node, operator, [x], -1, "as-is")
    return True


def batch_matmul(graph: Graph, node: Node, left: str, right: str) -> bool:
    a, b = graph.values[left].shape, graph.values[right].shape
    if len(a) < 2 or len(a) != len(b) or a[:-2] != b[:-2] or graph.values[left].dtype != "float32":
        return False
    if not all(isinstance(graph.values[name].storage, ops.Float) for name in (left, right)):
        return False
    transposed = False
    mover = graph.producer(right)
    if mover is not None and mover.op == "Transpose":
        rank = len(b)
        perm = list(mover.attributes.get("perm", range(rank)[::-1]))
        # y = x^T read as [.., columns, depth]: what is left of the permutation leaves the last axis where it is.
        swapped = [*perm[:-2], perm[-1], perm[-2]]
        if swapped == list(range(rank)):
            right, transposed = mover.inputs[0], True
        elif swapped[-1] == rank - 1:
            source = graph.values[mover.inputs[0]].shape
            shape = [source[i] for i in swapped]
            right = graph.emit("Transpose", [mover.inputs[0]], shape, right, mover, attributes={"perm": swapped})
            transposed = True
    batch = int(np.prod(a[:-2], dtype=np.int64))
    geometry = ops.MatMul(a[-2], a[-1], graph.values[node.outputs[0]].shape[-1])
    operator = ops.BatchMatMul(node.name, batch, geometry, transposed, ops.Epilogue())
    kernel_node(graph, node, operator, [left, right], -1, "as-is")
    return True


# ---- pools ----


def sum_of_codes(graph: Graph, node: Node, codes: str, **_: object) -> bool:
    """ReduceSum of codes over consecutive axes: Pool2d with one window for each of what is left."""
    value = graph.values[codes]
    if not isinstance(value.storage, ops.Codes):
        return False
    axes = graph.constant_of(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    if axes is None:
        return False
    rank = len(value.shape)
    over = sorted(int(a) % rank for a in axes.reshape(-1))
    if over != list(range(over[0], over[0] + len(over))) or over[0] == 0:
        return False
    batch = int(np.prod(value.shape[: over[0]], dtype=np.int64))
    length = int(np.prod([value.shape[a] for a in over], dtype=np.int64))
    after = int(np.prod(value.shape[over[-1] + 1 :], dtype=np.int64))
    if over == list(range(2, rank)):  # NCHW: channels are axis 1
        batch, after, reads, axis = value.shape[0], value.shape[1], "NHWC", 1
    elif over[-1] == rank - 1:
        return False
    else:
        reads, axis = "as-is", -1
    kept = len(graph.values[node.outputs[0]].shape) == rank
    window = ops.Conv2d(batch, length, 1, after, after, (length, 1), groups=after)
    operator = ops.Pool2d(node.name, "sum", window, value.storage, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], axis if kept else -1, reads)
    return True


def ones_conv_of_codes(graph: Graph, node: Node, codes: str, w: Array) -> bool:
    """A depthwise convolution of codes with ones is a sum over windows."""
    value = graph.values[codes]
    groups = int(node.attributes.get("group", 1))
    if (
        not isinstance(value.storage, ops.Codes)
        or groups != value.shape[1]
        or w.shape[0] != groups
        or not (w == 1).all()
    ):
        return False
    geometry = conv_geometry(value.shape, w.shape, node.attributes, groups)
    if geometry is None:
        return False
    operator = ops.Pool2d(node.name, "sum", geometry, value.storage, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], 1, "NHWC")
    return True


def pool(function: str) -> Callable[..., bool]:
    def to(graph: Graph, node: Node, x: str) -> bool:
        value, y = graph.values[x], graph.values[node.outputs[0]].shape
        if not isinstance(value.storage, ops.Float) or any(node.outputs[1:]):
            return False
        attributes = dict(node.attributes)
        if node.op.startswith("Global"):
            spatial = list(value.shape[2:])
            ones = [1] * len(spatial)
            attributes = {"kernel_shape": spatial, "strides": ones, "dilations": ones, "pads": [0] * 2 * len(spatial)}
        channels = value.shape[1]
        geometry = conv_geometry(value.shape, (channels,), attributes, channels)
        if geometry is None or not _same_size(geometry, y):
            return False
        counts = bool(attributes.get("count_include_pad", 0))
        operator = ops.Pool2d(node.name, function, geometry, ops.Float(), ops.Epilogue(), counts)  # type: ignore[arg-type]
        kernel_node(graph, node, operator, [x], 1, "NHWC")
        return True

    return to


# ---- rows ----


def _rows_and_channels(shape: Shape) -> tuple[int, int]:
    return int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]


def softmax(graph: Graph, node: Node, x: str) -> bool:
    shape = graph.values[x].shape
    if int(node.attributes.get("axis", -1)) % len(shape) != len(shape) - 1:
        return False
    operator = ops.Softmax(node.name, *_rows_and_channels(shape))
    kernel_node(graph, node, operator, [x], -1, "as-is")
    return True


def layer_norm(graph: Graph, node: Node, x: str, gamma: Array, **_: object) -> bool:
    shape = graph.values[x].shape
    if int(node.attributes.get("axis", -1)) % len(shape) != len(shape) - 1 or any(node.outputs[1:]):
        return False
    beta = graph.constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1, np.float32)
    if beta is None:
        return False
    rows, channels = _rows_and_channels(shape)
    gamma, beta = (np.broadcast_to(v.astype(np.float32).reshape(-1), (channels,)).copy() for v in (gamma, beta))
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    operator = ops.LayerNorm(node.name, rows, channels, epsilon, gamma, beta, ops.Epilogue())
    kernel_node(graph, node, operator, [x], -1, "as-is")
    return True


def quantize_tokens(graph: Graph, node: Node, x: str) -> bool:
    operator = ops.QuantizeTokens(node.name, *_rows_and_channels(graph.values[x].shape))
    made = kernel_node(graph, node, operator, [x], -1, "as-is")
    if len(made.outputs) < 2 or not made.outputs[1]:
        step = graph.fresh(made.outputs[0])
        graph.add_value(step, "float32", (*graph.values[x].shape[:-1], 1))
        graph.set_outputs(made, [made.outputs[0], step])
    return True


RULES: list[Rule] = [
    # ---- low bit ----
    rule("quantized convolution", Op("Conv", Coded("codes"), Weights("weight")), to=quantized_conv),
    rule("quantized matrix product", Op("MatMul", Coded("codes"), Weights("weight")), to=quantized_matmul),
    rule("sum of codes", Op("ReduceSum", Coded("codes"), rest=True), to=sum_of_codes),
    rule("sum of codes by windows", Op("Conv", Coded("codes"), Const("w")), to=ones_conv_of_codes),
    rule("codes by token", Op("QuantizePerToken", Any("x"), domain="subbyte"), to=quantize_tokens),
    rule("no quantizer", Op("Conv", Any("x"), Weights("weight"), rest=True), to=no_quantizer),
    rule("no quantizer", Op("MatMul", Any("x"), Weights("weight"), rest=True), to=no_quantizer),
    # ---- float ----
    rule("convolution", Op("Conv", Any("x"), Const("w")), to=float_conv),
    rule("matrix product", Op("MatMul", Any("x"), Const("w")), to=float_matmul),
    rule("matrix product of two tensors", Op("MatMul", Any("left"), Any("right")), to=batch_matmul),
    rule("max pool", Op("MaxPool", Any("x")), to=pool("max")),
    rule("average pool", Op("AveragePool", Any("x")), to=pool("average")),
    rule("global average pool", Op("GlobalAveragePool", Any("x")), to=pool("average")),
    rule("global max pool", Op("GlobalMaxPool", Any("x")), to=pool("max")),
    rule("softmax", Op("Softmax", Any("x")), to=softmax),
    rule("layer norm", Op("LayerNormalization", Any("x"), Const("gamma"), rest=True), to=layer_norm),
]
