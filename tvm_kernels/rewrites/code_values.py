"""Values stored as codes: the conversions between levels, codes and bytes.

The ONNX value of a byte is `byte - zero_point` of the value's storage. Its type decides what that value is:

    float32            a level, as products multiply it: subbyte.Quantize, and `view_as_levels` of the codes of a file
    int8, uint8, ...   a code of the file, as QuantizeLinear writes it; its zero point is that of `storage_of(dtype)`

Neither includes the zero point of QuantizeLinear: `view_as_levels` reads the same bytes with it. Constants and
attributes of ONNX nodes hold ONNX values until `insert_conversions`, the last step: then operators that only move data
read and write bytes, and all other ONNX nodes read ONNX values: levels as float32, codes as integers, packed bits as -1
and +1.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from subbyte.dialect import exactness
from subbyte.dialect.function import Quantizer, find
from subbyte.dialect.graph import DATA_MOVEMENT as ONNX_DATA_MOVEMENT
from subbyte.dialect.names import DOMAIN
from subbyte.errors import CompileError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Value
from subbyte.tvm_kernels.internal_operators import INTERNAL, KERNEL

RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint4": (0, 15), "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1)}
NARROW = tuple(name for name in RANGES if not name.endswith("8"))  # NumPy lacks them: in memory a byte for each
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")  # in the canonical form a View
DATA_MOVEMENT = ("View", *sorted(ONNX_DATA_MOVEMENT - {*VIEWS, "Identity"}))
# Rules that keep values as codes up to a product; the report gives the reason where one declines.
STEP_AFTER_BOUNDS, STEP_AFTER_MOVEMENT, MAX_POOL = "step after bounds", "step after data movement", "max pool of codes"
ALONG_REDUCTION = "its scales run along the reduction"
UINT8, INT8, INT32 = 2, 3, 6  # ONNX element types


def codes_of(dtype: str, zero: int) -> ops.Codes | None:
    """Levels `code - zero` of an ONNX type of at most 8 bits: a byte for each, counted from the least code."""
    if dtype not in RANGES:
        return None
    low, high = RANGES[dtype]
    return ops.Codes(low - zero, high - zero, zero - low)


def storage_of(dtype: str) -> ops.Codes | None:
    """The storage as codes of integers of an ONNX type of at most 8 bits."""
    return codes_of(dtype, 0)


def encoded(values: Array, storage: ops.Storage) -> Array | None:
    """ONNX values as the bytes of that storage; None where it cannot represent one of them."""
    if not isinstance(storage, ops.Codes):
        return None
    wide = values.astype(np.float64)
    if not ((wide == np.rint(wide)) & (wide >= storage.low) & (wide <= storage.high)).all():
        return None
    return (wide + storage.zero_point).astype(np.uint8)


def moved_inputs(node: Node) -> list[str]:
    """The inputs whose elements a data movement copies to its output."""
    return node.inputs if node.op == "Concat" else node.inputs[:1]


def path_from_codes(graph: Graph, name: str, dtypes: Collection[str] = RANGES) -> list[Node] | None:
    """The nodes between codes of these types and a value computed from them without arithmetic; None without codes.

    A uint8 input of the model, such as an image, is not a quantized activation.
    """
    paths: list[tuple[str, list[Node]]] = [(name, [])]
    seen: set[str] = set()
    while paths:
        name, path = paths.pop()
        value, node = graph.values[name], graph.producer(name)
        if value.coded or (node is not None and value.dtype in dtypes):
            return path
        if node is not None and name not in seen:
            paths += [(other, [node, *path]) for other in _copied_inputs(graph, node)]
        seen.add(name)
    return None


def _copied_inputs(graph: Graph, node: Node) -> list[str]:
    """The inputs whose elements, unchanged or scaled as by DequantizeLinear, are the elements of the output."""
    if node.op in DATA_MOVEMENT or node.op == "UnpackBits":
        return moved_inputs(node)
    if isinstance(node.operator, ops.Pool2d):
        unchanged = node.operator.function == "max" or node.operator.geometry.kernel == (1, 1)  # as in `to_float`
        return node.inputs[:1] if unchanged else []
    if node.op == "Resize":
        return node.inputs[:1] if node.attributes.get("mode", "nearest") == "nearest" else []
    inputs = [name for name in node.inputs if name and not graph.values[name].is_constant]
    if node.op in ("Mul", "Sub", "Cast"):  # (code - zero point) x step
        return inputs if len(inputs) == 1 else []
    return inputs[node.op == "Where" :] if node.op in exactness.CHOICES else []


def lacks_quantizer(graph: Graph, x: str) -> str:
    """Why a float32 value cannot be the activation of an integer product, for example "has no quantizer"."""
    return lost_quantizer(graph, x) or "has no quantizer"


def lost_quantizer(graph: Graph, x: str) -> str:
    """Why a value that the file quantizes is float32 here; empty where the file has no quantizer for it."""
    path = path_from_codes(graph, x)
    if path is None:
        producer = _computed_by(graph, x)
        if producer is not None and _is_quantizer(producer):
            why = "; ".join(producer.declined.values())
            return f"is quantized by '{producer.name}' ({DOMAIN}.{producer.op}) in float32" + (
                f": {why}" if why else ""
            )
        if (sign := _binarizing_node(graph, producer)) is not None:
            return (
                f"is -1 or +1 in float32, computed by '{sign.name}' ({sign.op}), and binary values are recognized only "
                "from subbyte.Binarize: put QuantizeLinear and DequantizeLinear of scale 1 after it"
            )
        of_16_bits = path_from_codes(graph, x, ("int16", "uint16")) is not None
        return "is quantized to 16 bits, and kernels take at most 8" if of_16_bits else ""
    for node in path:
        why = next((f": {node.declined[name]}" for name in _SHOWN if name in node.declined), "")
        if why or node.op in exactness.CHOICES - {"MaxPool", "GlobalMaxPool"} or node.op == "Resize":
            return f"is quantized, but '{node.name}' ({node.op}) in between is computed in float32{why}"
    return "is quantized by axis"


def _computed_by(graph: Graph, name: str) -> Node | None:
    """The node that computes a value, before any data movement."""
    node = graph.producer(name)
    while node is not None and node.op in DATA_MOVEMENT and len(inputs := moved_inputs(node)) == 1:
        node = graph.producer(inputs[0])
    return node


def _is_quantizer(node: Node) -> bool:
    function = find(node.op) if node.domain == DOMAIN else None
    return function is not None and isinstance(function.role, Quantizer)


def _binarizing_node(graph: Graph, node: Node | None) -> Node | None:
    """The node, if it computes values of -1 and +1 (and 0, by Sign)."""
    if node is None or node.domain:
        return None
    if node.op == "Where":
        sides = [graph.constant_of(side) for side in node.inputs[1:]]
        return node if all(side is not None and bool((abs(side) == 1).all()) for side in sides) else None
    return node if node.op == "Sign" else None


_SHOWN = (STEP_AFTER_BOUNDS, STEP_AFTER_MOVEMENT, MAX_POOL)


def packed(codes: str) -> str:
    """Why a rule for codes declines a value stored as bits."""
    return f"'{codes}' is stored as bits"


# ---- conversions ----


def view_as_levels(graph: Graph, codes: str, zero: int, like: Node) -> str:
    """A view of integers stored as codes as their levels `code - zero`, float32 in ONNX; the bytes are the same."""
    value = graph.values[codes]
    levels = graph.emit("View", [codes], value.shape, codes, like, domain=INTERNAL)
    storage = codes_of(value.dtype, zero)
    assert storage is not None
    graph.values[levels].storage = storage
    return levels


def to_codes(graph: Graph, integers: str, like: Node) -> str:
    """Integers of an ONNX type of at most 8 bits as codes: bytes counted from the lowest integer of the type."""
    value = graph.values[integers]
    storage = storage_of(value.dtype)
    assert storage is not None
    if storage.zero_point:
        integers = _shifted(graph, integers, storage.zero_point, "uint8", like)
    codes = graph.emit("View", [integers], value.shape, value.name, like, domain=INTERNAL, dtype=value.dtype)
    graph.values[codes].storage = storage
    return codes


def to_integers(graph: Graph, codes: str, like: Node) -> str:
    """Integers stored as codes, as integers of their ONNX type; those of less than 8 bits as bytes."""
    value = graph.values[codes]
    storage = storage_of(value.dtype)
    assert storage is not None
    attributes = {"integers": 1}  # not codes, which a view would propagate
    integers = graph.emit(
        "View", [codes], value.shape, codes, like, domain=INTERNAL, dtype="uint8", attributes=attributes
    )
    return _shifted(graph, integers, -storage.zero_point, "int8", like) if storage.zero_point else integers


def _shifted(graph: Graph, integers: str, by: int, dtype: str, like: Node) -> str:
    shape = graph.values[integers].shape
    wide = graph.emit("Cast", [integers], shape, integers, like, dtype="int32", attributes={"to": INT32})
    amount = graph.constant(np.array(by, np.int32))
    wide = graph.emit("Add", [wide, amount], shape, integers, like, dtype="int32")
    to = UINT8 if dtype == "uint8" else INT8
    return graph.emit("Cast", [wide], shape, integers, like, dtype=dtype, attributes={"to": to})


def to_float(graph: Graph, codes: str, like: Node) -> str:
    """Levels or binary values as float32 in memory: a sum over windows of one element, which a `Mul` after it joins."""
    value = graph.values[codes]
    if value.bits is not None:
        return graph.emit("UnpackBits", [codes], value.shape, codes, like, domain=INTERNAL)
    operator = ops.Pool2d(like.name, "sum", each_element(graph, codes), _codes(graph, codes), ops.Epilogue())
    return graph.emit("Pool2d", [codes], value.shape, codes, like, domain=KERNEL, operator=operator, reads="same")


def product_input(graph: Graph, codes: str, product: Node) -> str:
    """Levels or binary values as the float32 input of a product that reads no codes, padded where it pads with +1.

    No operator of ONNX pads a product with +1: then the padding is a node before it, and the product has none.
    """
    values = to_float(graph, codes, product)
    if not product.attributes.get("pads_with"):
        return values
    pads = np.array(product.attributes["pads"]).reshape(2, -1)
    around = np.pad(pads, [(0, 0), (2, 0)])
    shape = tuple(int(d) for d in np.array(graph.values[codes].shape) + around.sum(axis=0))
    amounts = [graph.constant(around.reshape(-1).astype(np.int64)), graph.constant(np.float32(1))]
    kept = {key: value for key, value in product.attributes.items() if key != "pads_with"}
    product.attributes = {**kept, "pads": [0] * pads.size}
    return graph.emit("Pad", [values, *amounts], shape, codes, product)


def binary_to_codes(graph: Graph, values: str, like: Node) -> str:
    """Binary values in float32 as codes of levels -1 and +1, exactly: for products that do not support bits."""
    storage = ops.Codes(-1, 1, 128)
    attributes = {"factor": 1.0, "storage": storage, "divide": False}
    shape = graph.values[values].shape
    codes = graph.emit("QuantizeCodes", [values], shape, values, like, domain=INTERNAL, attributes=attributes)
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


# ---- after all rules ----


def insert_conversions(graph: Graph) -> None:
    """Convert what nodes without a kernel read: bytes for data movement, ONNX values for others; weights to float32."""
    integers: dict[str, str] = {}
    for node in graph.order():
        for name in dict.fromkeys(node.inputs):
            value = graph.values[name] if name else None
            if value is not None and value.weight is not None and value.data is None:
                _spell_out(graph, value, node)
        if node.operator is None and not _copies_codes(graph, node):
            _read_values(graph, node, integers)
    for index, name in enumerate(graph.outputs):
        if graph.values[name].coded and graph.producer(name) is not None:
            _convert_output(graph, index)


def _spell_out(graph: Graph, value: Value, user: Node) -> None:
    """Make low-bit weights a float32 constant; a note names it, unless its user is a product, which has a reason."""
    change = f"'{value.name}' is {value.tensor.format.name} in the file and float32 here"
    value.data, value.weight = value.floats(), None
    if user.op.startswith("Gather") and not user.fallback:
        user.fallback = ": ".join([f"its table {change}", *user.declined.values()])
    elif not user.fallback:
        graph.notes.append(f"{change}: {user.op} '{user.name}' has no kernel for it")


def _copies_codes(graph: Graph, node: Node) -> bool:
    """Whether a node is data movement of codes; its constants become bytes, as its inputs are."""
    storage = (
        graph.values[node.outputs[0]].codes if node.op in DATA_MOVEMENT else None
    )  # an LSTM may leave its first output out
    if storage is None:
        return False
    inputs = list(node.inputs)
    if node.op == "Concat":
        indices = list(range(len(inputs)))
    elif node.op == "Pad" and node.attributes.get("mode", "constant") == "constant":
        inputs += [""] * (3 - len(inputs))
        inputs[2] = inputs[2] or graph.constant(np.float32(0))
        indices = [2]
    else:
        indices = []
    for index in indices:
        data = graph.constant_of(inputs[index])
        if data is not None and data.dtype != np.uint8:  # those are bytes; unsigned codes are, too
            bytes_ = encoded(data, storage)
            assert bytes_ is not None  # else `propagate_storage` would have declined
            inputs[index] = graph.constant(bytes_, inputs[index])
    graph.set_inputs(node, inputs)
    return True


def _read_values(graph: Graph, node: Node, integers: dict[str, str]) -> None:
    """Replace the coded inputs of a node without a kernel by their ONNX values."""
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
    return product_input(graph, name, like) if floats else to_integers(graph, name, like)


def _convert_output(graph: Graph, index: int) -> None:
    """Convert an output of the model to its ONNX value."""
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
