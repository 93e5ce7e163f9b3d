"""Run-time integers of at most 8 bits, the codes of QDQ files, and the operators that compute on them (code_values.py).

    QuantizeLinear                       ->  QuantizeCodes; by axis, by block or of 16 bits as float operators
    DequantizeLinear                     ->  Mul(levels, step), or float operators; levels are the same bytes
    Cast of codes to float32             ->  levels with zero point 0
    MaxPool, Clip, Relu of codes         ->  kernels from codes to codes
    data movement of codes               ->  its output is stored as codes, too

ONNX QuantizeLinear divides by the step; the kernels do so too (`ToCodes(divide=True)`).
"""

from __future__ import annotations

import typing

import numpy as np

from subbyte.errors import ModelError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.memory import ALIGNMENT
from subbyte.tvm_kernels.rewrites.code_values import (
    DATA_MOVEMENT,
    MAX_POOL,
    NARROW,
    codes_of,
    each_element,
    encoded,
    moved_inputs,
    packed,
    storage_of,
    to_codes,
    view_as_levels,
)
from subbyte.tvm_kernels.rewrites.foreign import QDQ, spread
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import EVERY, WINDOW, Any, Coded, Op, Outcome, Rule, rule
from subbyte.tvm_kernels.rewrites.pools import WINDOWS_HANDLED, pool_window

_CODES, _LEVELS = Coded("codes", integers=True), Coded("codes")
BEYOND = (-256.0, 256.0)  # every code
FLOAT = 1  # an ONNX element type
OTHERS = {"uint16": (0, 65535), "int16": (-32768, 32767), "int32": (-(2**31), 2**31 - 1)}  # by float operators


# ---- QuantizeLinear, DequantizeLinear ----


def quantize_linear(graph: Graph, node: Node, x: str) -> Outcome:
    """A Quantize that divides. Its output is the codes of the file; the kernel subtracts no zero point."""
    output = graph.values[node.outputs[0]]
    step, zero = _constant(graph, node, 1), _constant(graph, node, 2)
    if graph.values[x].dtype != "float32":
        raise ModelError(
            f"node '{node.name}' quantizes {graph.values[x].dtype}; QuantizeLinear is compiled for float32: put a Cast "
            "to float32 in front of it"
        )
    if output.dtype not in {*OTHERS} and storage_of(output.dtype) is None:
        raise ModelError(
            f"node '{node.name}' quantizes to {output.dtype}; integers of 2, 4, 8 and 16 bits are compiled: export it "
            "with one of these"
        )
    by_tensor = step is not None and zero is not None and step.size == zero.size == 1 and output.shape
    storage = codes_of(output.dtype, int(zero.reshape(-1)[0])) if by_tensor and zero is not None else None
    if step is None or storage is None:
        return _quantize_in_float(graph, node, x)
    attributes = {"factor": float(np.float32(step.reshape(-1)[0])), "storage": storage, "divide": True}
    output.storage = storage_of(output.dtype) or output.storage
    graph.replace_node(node, Node("QuantizeCodes", [x], node.outputs, attributes, node.name, INTERNAL))
    return True


def dequantize_linear(graph: Graph, node: Node, x: str) -> Outcome:
    """Mul(levels, step): the zero point of the file is subtracted by a view of the same bytes with that zero point."""
    value = graph.values[x]
    step, zero = _constant(graph, node, 1), _constant(graph, node, 2)
    if step is None or zero is None or step.size != 1 or zero.size != 1 or storage_of(value.dtype) is None:
        return _dequantize_in_float(graph, node, x)
    if not value.coded:
        if store_source_as_codes(graph, x):
            return True  # the codes propagate through the data movement before this node
        x = to_codes(graph, x, node)
    levels = view_as_levels(graph, x, int(zero.reshape(-1)[0]), node)
    factor = graph.constant(step.reshape((1,) * bool(value.shape)).astype(np.float32), "step")
    graph.replace_node(node, Node("Mul", [levels, factor], node.outputs, {}, node.name))
    return True


def store_source_as_codes(graph: Graph, name: str) -> bool:
    """Store as codes the integers that data movement or a window reads first; whether a value was changed."""
    node = graph.producer(name)
    windows = node is not None and node.op == "MaxPool" and not any(node.outputs[1:]) and "explicit" in node.attributes
    if node is None or not (windows or (node.op in DATA_MOVEMENT and node.op != "Concat")):
        return False
    source = graph.values[node.inputs[0]]
    if source.is_constant or source.coded:
        return False  # already stored as codes, which the node does not propagate
    if not store_source_as_codes(graph, source.name):
        graph.set_inputs(node, [to_codes(graph, source.name, node), *node.inputs[1:]])
    return True


def _constant(graph: Graph, node: Node, index: int) -> Array | None:
    """A scale or zero point; None where it is computed at run time."""
    return graph.constant_of(node.given(index)) if node.given(index) else np.zeros((), np.float32)


def _quantize_in_float(graph: Graph, node: Node, x: str) -> Outcome:
    """saturate(round(x / scale) + zero point) as ONNX nodes."""
    output = graph.values[node.outputs[0]]
    scale, zero = (_broadcast(graph, node, index, x) for index in (1, 2))
    y = graph.emit("Div", [x, scale], output.shape, x, node)
    y = graph.emit("Round", [y], output.shape, x, node)
    y = graph.emit("Add", [y, zero], output.shape, x, node)
    limits = OTHERS.get(output.dtype) or (_range(output.dtype).low, _range(output.dtype).high)
    bounds = [graph.constant(np.float32(limit)) for limit in limits]
    y = graph.emit("Clip", [y, *bounds], output.shape, x, node)
    if output.dtype in NARROW:
        raise ModelError(f"node '{node.name}' quantizes to {output.dtype} by axis or by block; export it per tensor")
    to = {"uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6}[output.dtype]
    graph.replace_node(node, Node("Cast", [y], node.outputs, {"to": to}, node.name))
    return True


def _dequantize_in_float(graph: Graph, node: Node, x: str) -> Outcome:
    """(x - zero point) x scale as ONNX nodes."""
    value = graph.values[x]
    if value.dtype not in OTHERS and storage_of(value.dtype) is None:
        raise ModelError(
            f"node '{node.name}' dequantizes {value.dtype}; integers of 2, 4, 8, 16 and 32 bits are compiled: export "
            "it with one of these"
        )
    scale, zero = (_broadcast(graph, node, index, x) for index in (1, 2))
    y = graph.emit("Cast", [x], value.shape, x, node, attributes={"to": FLOAT})
    y = graph.emit("Sub", [y, zero], value.shape, x, node)
    graph.replace_node(node, Node("Mul", [y, scale], node.outputs, {}, node.name))
    return True


def _range(dtype: str) -> ops.Codes:
    storage = storage_of(dtype)
    assert storage is not None
    return storage


def _broadcast(graph: Graph, node: Node, index: int, x: str) -> str:
    """A scale or zero point as float32 that broadcasts over x: by axis, by block, or one for all."""
    shape = graph.values[x].shape
    name = node.given(index)
    axis = int(node.attributes.get("axis", 1)) % max(1, len(shape))
    block = int(node.attributes.get("block_size", 0))
    constant = _constant(graph, node, index)
    if constant is not None:
        return graph.constant(spread(constant.astype(np.float32), axis, shape, block), name or node.name)
    value = graph.values[name]
    if block or (value.size > 1 and value.shape != (shape[axis],)):
        raise ModelError(f"node '{node.name}': scales and zero points by block must be constants of the file")
    if value.dtype != "float32":
        name = graph.emit("Cast", [name], value.shape, name, node, attributes={"to": FLOAT})
    broad = [shape[i] if i == axis and value.size > 1 else 1 for i in range(len(shape))]
    return graph.emit("View", [name], broad, name, node, domain=INTERNAL)


# ---- operators on codes ----


def cast_codes(graph: Graph, node: Node, codes: str) -> Outcome:
    """A Cast of codes to float32 gives levels with zero point 0."""
    if (dtype := graph.values[node.outputs[0]].dtype) != "float32":
        return f"it makes {dtype}; handled: float32"
    levels = view_as_levels(graph, codes, 0, node)
    graph.values[node.outputs[0]].storage = graph.values[levels].storage
    graph.replace_node(node, Node("View", [levels], node.outputs, {}, node.name, INTERNAL))
    return True


def pool_codes(graph: Graph, node: Node, codes: str) -> Outcome:
    """The largest code of each window is the largest level."""
    storage, attributes = graph.values[codes].codes, node.attributes
    written_out = node.op == "GlobalMaxPool" or "explicit" in attributes
    if storage is None:
        return packed(codes)
    if any(node.outputs[1:]):
        return "its second output is used"
    geometry = pool_window(graph, node, codes) if written_out else None
    if geometry is None:
        return WINDOWS_HANDLED
    epilogue = ops.Epilogue((), (ops.ToCodes(1.0, storage),))
    kernel_node(graph, node, ops.Pool2d(node.name, "max", geometry, storage, epilogue), [codes], 1, "NHWC")
    graph.values[node.outputs[0]].storage = storage
    return True


def clip_codes(graph: Graph, node: Node, codes: str, **_: object) -> Outcome:
    """Clip of codes to bounds that are codes: computed in float32, which represents every code exactly."""
    storage, within = graph.values[codes].codes, clip_limits(graph, node)
    if within is None or storage is None:
        return "its bounds are made at run time" if within is None else packed(codes)
    if encoded(np.clip([storage.low, storage.high], *within), storage) is None:
        return f"its bounds {within[0]:g} and {within[1]:g} are not codes"
    within = (max(within[0], BEYOND[0]), min(within[1], BEYOND[1]))
    epilogue = ops.Epilogue((ops.Clip(*within),), (ops.ToCodes(1.0, storage),))
    window = each_element(graph, codes)
    kernel_node(graph, node, ops.Pool2d(node.name, "sum", window, storage, epilogue), [codes], None, "same")
    graph.values[node.outputs[0]].storage = storage
    return True


def clip_limits(graph: Graph, node: Node) -> tuple[float, float] | None:
    """The bounds of a Clip or Relu; None where one is computed at run time."""
    limits = [0.0 if node.op == "Relu" else -np.inf, np.inf]
    for index, name in enumerate(node.inputs[1:3]):
        data = graph.constant_of(name) if name else None
        if name and data is None:
            return None
        if data is not None:
            limits[index] = float(data.reshape(-1)[0])
    return limits[0], limits[1]


def propagate_storage(graph: Graph, node: Node, codes: str, **_: object) -> Outcome:
    """The output of data movement has the storage of its inputs; not for bits, which cannot be copied one by one."""
    storage = graph.values[codes].codes
    if any(graph.values[name].coded for name in node.outputs if name):
        return None  # already set
    if graph.values[node.outputs[0]].dtype != graph.values[codes].dtype or node.attributes.get("integers"):
        return None  # a view of codes as integers
    if storage is None:
        return packed(codes)
    fill = node.given(2) if node.op == "Pad" else ""
    for name in [*moved_inputs(node), *([fill] if fill else [])]:
        value = graph.values[name]
        if value.data is None and (name == fill or value.is_constant or value.storage != storage):
            return f"'{name}' is not stored as '{codes}' is: codes {storage.low} to {storage.high}"
        if value.data is not None and encoded(value.data, storage) is None:
            return f"the constant '{name}' is not of the codes {storage.low} to {storage.high}"
    for name in node.outputs:
        if name:
            graph.values[name].storage = storage
    return True


def part_of_codes(graph: Graph, node: Node, codes: str) -> Outcome:
    """A view of floats that turn out to be codes: as bytes it may begin between aligned addresses, and is copied."""
    value, output, start = graph.values[codes], graph.values[node.outputs[0]], int(node.attributes["start"])
    if output.coded:
        return None
    if value.codes is None:
        return packed(codes)
    output.storage = value.storage
    if start % ALIGNMENT == 0:
        return True
    axis = next(i for i, size in enumerate(value.shape) if size > 1)
    length = int(np.prod(value.shape[axis + 1 :], dtype=np.int64))
    first, count = start // length, output.size // length
    ends = [graph.constant(np.array([n], np.int64)) for n in (first, first + count, axis)]
    shape = (*value.shape[:axis], count, *value.shape[axis + 1 :])
    copy = graph.emit("Slice", [codes, *ends], shape, codes, node, dtype=value.dtype)
    graph.values[copy].storage = value.storage
    graph.replace_node(node, Node("View", [copy], node.outputs, {}, node.name, INTERNAL))
    return True


_EVERY: dict[str, typing.Any] = {"dtypes": EVERY, "attributes": EVERY, "outputs": EVERY}

RULES: list[Rule] = [
    # ---- QuantizeLinear, DequantizeLinear ----
    rule("QDQ activation", Op("QuantizeLinear", Any("x"), **{**QDQ, "dtypes": EVERY}), to=quantize_linear),
    rule("QDQ step", Op("DequantizeLinear", Any("x"), **{**QDQ, "dtypes": EVERY}), to=dequantize_linear),
    # ---- operators on codes ----
    rule("codes as numbers", Op("Cast", _CODES, dtypes=EVERY, attributes=("to",)), to=cast_codes),
    *[
        rule(MAX_POOL, Op("MaxPool", x, dtypes=EVERY, attributes=WINDOW, outputs=EVERY), to=pool_codes)
        for x in (_CODES, _LEVELS)
    ],
    rule(MAX_POOL, Op("GlobalMaxPool", _LEVELS), to=pool_codes),
    rule("clipped codes", Op("Clip", _CODES, rest=True, dtypes=EVERY), to=clip_codes),
    rule("clipped levels", Op("Clip", _LEVELS, rest=True, dtypes=EVERY), to=clip_codes),
    rule("ReLU of codes", Op("Relu", _CODES, dtypes=EVERY), to=clip_codes),
    # ---- data movement ----
    *[rule("part of codes", Op("Part", x, domain=INTERNAL, **_EVERY), to=part_of_codes) for x in (_CODES, _LEVELS)],
    *[
        rule("data movement", Op(op, x, rest=True, domain=INTERNAL * (op == "View"), **_EVERY), to=propagate_storage)
        for op in DATA_MOVEMENT
        for x in (_CODES, _LEVELS)
    ],
]
