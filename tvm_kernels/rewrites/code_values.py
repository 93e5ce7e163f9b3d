"""What a value held as codes says: the one place where levels, codes and bytes meet.

Whatever its type, the ONNX value of a byte is `byte - zero_point` of the value's storage; the type says what that is:

    float32            a level, what products add up: subbyte.Quantize, and `as_levels` of the codes of a file
    int8, uint8, ...   a code of the file, as QuantizeLinear writes it; its zero point is that of `held(dtype)`

A quantizer's own zero point belongs to neither: `as_levels` looks at the same bytes with it. Constants and attributes
of ONNX nodes speak of ONNX values until `settle`, the last step, gives moves of codes bytes to work on and all other
ONNX nodes the ONNX values themselves: levels as float32, codes as integers, packed signs as -1 and +1.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from subbyte import exactness
from subbyte.dialect.graph import MOVES as ONNX_MOVES
from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Value

RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1)}
NARROW = tuple(name for name in RANGES if not name.endswith("8"))  # NumPy lacks them: in memory a byte for each
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")  # in the standard form a View
MOVES = ("View", *sorted(ONNX_MOVES - {*VIEWS, "Identity"}))
# Rules that keep codes on their way to a product; why one declines is shown.
BEHIND_BOUNDS, BEHIND_MOVE, MAX_POOL = "step after bounds", "step after data movement", "max pool of codes"
ALONG_REDUCTION = "its scales run along the reduction"
UINT8, INT8, INT32 = 2, 3, 6  # ONNX element types


def codes_of(dtype: str, zero: int) -> ops.Codes | None:
    """Levels `code - zero` of an ONNX type of at most 8 bits: a byte for each, counted from the least code."""
    if dtype not in RANGES:
        return None
    low, high = RANGES[dtype]
    return ops.Codes(low - zero, high - zero, zero - low)


def held(dtype: str) -> ops.Codes | None:
    """How integers of an ONNX type of at most 8 bits are held as codes."""
    return codes_of(dtype, 0)


def encoded(values: Array, storage: ops.Storage) -> Array | None:
    """ONNX values as the bytes of that storage; None where it cannot hold one of them."""
    if not isinstance(storage, ops.Codes):
        return None
    wide = values.astype(np.float64)
    if not ((wide == np.rint(wide)) & (wide >= storage.low) & (wide <= storage.high)).all():
        return None
    return (wide + storage.zero_point).astype(np.uint8)


def moved(node: Node) -> list[str]:
    """The inputs of a move whose elements it moves."""
    return node.inputs if node.op == "Concat" else node.inputs[:1]


def codes_behind(graph: Graph, name: str, dtypes: Collection[str] = RANGES) -> list[Node] | None:
    """The nodes from codes of these types to a value that is made of their numbers; None where no codes are behind it.

    An image in bytes that a float model takes is no quantized activation.
    """
    ways: list[tuple[str, list[Node]]] = [(name, [])]
    seen: set[str] = set()
    while ways:
        name, way = ways.pop()
        value, node = graph.values[name], graph.producer(name)
        if value.coded or (node is not None and value.dtype in dtypes):
            return way
        if node is not None and name not in seen:
            ways += [(other, [node, *way]) for other in _same_numbers(graph, node)]
        seen.add(name)
    return None


def _same_numbers(graph: Graph, node: Node) -> list[str]:
    """The inputs whose numbers, or these as DequantizeLinear scales them, are those of the output."""
    if node.op in MOVES:
        return moved(node)
    if isinstance(node.operator, ops.Pool2d):
        as_they_are = node.operator.function == "max" or node.operator.geometry.kernel == (1, 1)  # as in `as_float`
        return node.inputs[:1] if as_they_are else []
    if node.op == "Resize":
        return node.inputs[:1] if node.attributes.get("mode", "nearest") == "nearest" else []
    inputs = [name for name in node.inputs if name and not graph.values[name].is_constant]
    if node.op in ("Mul", "Sub", "Cast"):  # (code - zero point) x step
        return inputs if len(inputs) == 1 else []
    return inputs[node.op == "Where" :] if node.op in exactness.CHOICES else []


def lacks_quantizer(graph: Graph, x: str) -> str:
    """Why a value in float32 is no activation of an integer product: "'x' has no quantizer"."""
    return lost_quantizer(graph, x) or "has no quantizer"


def lost_quantizer(graph: Graph, x: str) -> str:
    """Why a value that the file quantizes is in float32 all the same; empty where the file has no quantizer for it."""
    way = codes_behind(graph, x)
    if way is None:
        if (sign := _sign_behind(graph, x)) is not None:
            return (
                f"is the sign that '{sign.name}' ({sign.op}) makes in float32, and signs are read from "
                "subbyte.Binarize alone: put QuantizeLinear and DequantizeLinear of scale 1 after it"
            )
        of_16_bits = codes_behind(graph, x, ("int16", "uint16")) is not None
        return "is quantized to 16 bits, and kernels take at most 8" if of_16_bits else ""
    for node in way:
        why = next((f": {node.declined[name]}" for name in _SHOWN if name in node.declined), "")
        if why or node.op in exactness.CHOICES - {"MaxPool", "GlobalMaxPool"} or node.op == "Resize":
            return f"is quantized, but '{node.name}' ({node.op}) in between is computed in float32{why}"
    return "is quantized by axis"


def _sign_behind(graph: Graph, name: str) -> Node | None:
    """The node that makes a value of -1 and +1 (and 0, by Sign), behind what only moves it."""
    node = graph.producer(name)
    while node is not None and node.op in MOVES and len(behind := moved(node)) == 1:
        node = graph.producer(behind[0])
    if node is None or node.domain:
        return None
    if node.op == "Where":
        sides = [graph.constant_of(side) for side in node.inputs[1:]]
        return node if all(side is not None and bool((abs(side) == 1).all()) for side in sides) else None
    return node if node.op == "Sign" else None


_SHOWN = (BEHIND_BOUNDS, BEHIND_MOVE, MAX_POOL)


def packed(codes: str) -> str:
    """Why a rule of codes declines a value held as bits."""
    return f"'{codes}' is signs, packed in bits"


# ---- the same bytes, looked at otherwise ----


def as_levels(graph: Graph, codes: str, zero: int, like: Node) -> str:
    """The levels `code - zero` of integers held as codes: float32, the same bytes."""
    value = graph.values[codes]
    levels = graph.emit("View", [codes], value.shape, codes, like, domain="subbyte")
    storage = codes_of(value.dtype, zero)
    assert storage is not None
    graph.values[levels].storage = storage
    return levels


def as_codes(graph: Graph, integers: str, like: Node) -> str:
    """Integers of an ONNX type of at most 8 bits, held as codes: bytes that count from the least one."""
    value = graph.values[integers]
    storage = held(value.dtype)
    assert storage is not None
    if storage.zero_point:
        integers = _shifted(graph, integers, storage.zero_point, "uint8", like)
    codes = graph.emit("View", [integers], value.shape, value.name, like, domain="subbyte", dtype=value.dtype)
    graph.values[codes].storage = storage
    return codes


def as_integers(graph: Graph, codes: str, like: Node) -> str:
    """Integers held as codes, as ONNX has them; those of less than 8 bits as bytes."""
    value = graph.values[codes]
    storage = held(value.dtype)
    assert storage is not None
    attributes = {"integers": 1}  # not codes that a view hands on
    integers = graph.emit(
        "View", [codes], value.shape, codes, like, domain="subbyte", dtype="uint8", attributes=attributes
    )
    return _shifted(graph, integers, -storage.zero_point, "int8", like) if storage.zero_point else integers


def _shifted(graph: Graph, integers: str, by: int, dtype: str, like: Node) -> str:
    shape = graph.values[integers].shape
    wide = graph.emit("Cast", [integers], shape, integers, like, dtype="int32", attributes={"to": INT32})
    amount = graph.constant(np.array(by, np.int32))
    wide = graph.emit("Add", [wide, amount], shape, integers, like, dtype="int32")
    to = UINT8 if dtype == "uint8" else INT8
    return graph.emit("Cast", [wide], shape, integers, like, dtype=dtype, attributes={"to": to})


def as_float(graph: Graph, codes: str, like: Node) -> str:
    """Levels or packed signs as float32 in memory: a sum over windows of one element, which a `Mul` behind it joins."""
    value = graph.values[codes]
    if value.bits is not None:
        return graph.emit("UnpackBits", [codes], value.shape, codes, like, domain="subbyte")
    operator = ops.Pool2d(like.name, "sum", each_element(graph, codes), _codes(graph, codes), ops.Epilogue())
    return graph.emit("Pool2d", [codes], value.shape, codes, like, domain="kernel", operator=operator, reads="same")


def signs_as_codes(graph: Graph, signs: str, like: Node) -> str:
    """Signs in float32 as codes -1 and +1, exactly: for products that bits cannot serve."""
    storage = ops.Codes(-1, 1, 128)
    attributes = {"factor": 1.0, "storage": storage, "divide": False}
    shape = graph.values[signs].shape
    codes = graph.emit("QuantizeCodes", [signs], shape, signs, like, domain="subbyte", attributes=attributes)
    graph.values[codes].storage = storage
    return codes


def each_element(graph: Graph, codes: str) -> ops.Conv2d:
    """Windows of one element."""
    value = graph.values[codes]
    channels = value.shape[-1] if value.shape else 1
    return ops.Conv2d(1, value.size // max(1, channels), 1, channels, channels, (1, 1), groups=channels)


def _codes(graph: Graph, name: str) -> ops.Codes:
    storage = graph.values[name].codes
    assert storage is not None
    return storage


# ---- the last step ----


def settle(graph: Graph) -> None:
    """Nodes that stay ONNX read bytes where they only move codes, ONNX values elsewhere; weights become constants."""
    integers: dict[str, str] = {}
    for node in graph.order():
        for name in dict.fromkeys(node.inputs):
            value = graph.values[name] if name else None
            if value is not None and value.weight is not None and value.data is None:
                _spell_out(graph, value, node)
        if node.operator is None and not _moves_codes(graph, node):
            _read_values(graph, node, integers)
    for index, name in enumerate(graph.outputs):
        if graph.values[name].coded and graph.producer(name) is not None:
            _settle_output(graph, index)


def _spell_out(graph: Graph, value: Value, user: Node) -> None:
    """Make low-bit weights a float32 constant, named where their user is no product, which is named before."""
    assert value.weight is not None
    tensor = value.weight.tensor
    value.data, value.weight = np.ascontiguousarray(value.weight.value(), np.float32), None
    said = f"'{value.name}' is {tensor.format.name} in the file and float32 here"
    if user.op.startswith("Gather") and not user.fallback:
        user.fallback = ": ".join([f"its table {said}", *user.declined.values()])
    elif not user.fallback:
        graph.notes.append(f"{said}: {user.op} '{user.name}' has no kernel for it")


def _moves_codes(graph: Graph, node: Node) -> bool:
    """Whether a node moves codes; its constants become bytes, as its inputs are."""
    storage = (
        graph.values[node.outputs[0]].codes if node.op in MOVES else None
    )  # an LSTM may leave its first output out
    if storage is None:
        return False
    inputs = list(node.inputs)
    if node.op == "Concat":
        places = list(range(len(inputs)))
    elif node.op == "Pad" and node.attributes.get("mode", "constant") == "constant":
        inputs += [""] * (3 - len(inputs))
        inputs[2] = inputs[2] or graph.constant(np.float32(0))
        places = [2]
    else:
        places = []
    for place in places:
        data = graph.constant_of(inputs[place])
        if data is not None and data.dtype != np.uint8:  # those are bytes; unsigned codes are, too
            bytes_ = encoded(data, storage)
            assert bytes_ is not None  # or `carry_storage` had declined
            inputs[place] = graph.constant(bytes_, inputs[place])
    graph.set_inputs(node, inputs)
    return True


def _read_values(graph: Graph, node: Node, integers: dict[str, str]) -> None:
    """Give a node that stays ONNX the ONNX values of what it reads."""
    made = [graph.values[name] for name in node.outputs if name]
    narrow = [value.dtype for value in made if value.dtype in NARROW and not value.coded]
    if narrow:
        raise CompileError(
            f"node '{node.name}' ({node.op}) computes {narrow[0]}; only quantizers and data movement are compiled for "
            "that type: let the model compute in int8 or uint8 there"
        )
    for name in list(dict.fromkeys(node.inputs)):
        if not name or not graph.values[name].coded or node.op == "UnpackBits":
            continue
        values = integers.get(name) or _values(graph, name, node)
        if graph.values[name].dtype != "float32":
            integers[name] = values
        graph.replace_uses(name, values, [node])


def _values(graph: Graph, name: str, like: Node) -> str:
    floats = graph.values[name].dtype == "float32"
    return as_float(graph, name, like) if floats else as_integers(graph, name, like)


def _settle_output(graph: Graph, index: int) -> None:
    """An output of the model is its ONNX value in memory."""
    name = graph.outputs[index]
    value, producer = graph.values[name], graph.producer(name)
    assert producer is not None
    inner = graph.fresh(name)
    graph.add_value(inner, value.dtype, value.shape, storage=value.storage, holds=name)
    graph.set_outputs(producer, [inner if output == name else output for output in producer.outputs])
    graph.replace_uses(name, inner)
    made = graph.producer(_values(graph, inner, producer))
    assert made is not None
    value.storage = ops.Float()
    graph.set_outputs(made, [name])
