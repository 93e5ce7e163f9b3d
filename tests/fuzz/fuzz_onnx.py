"""ONNX files: a right one, changed anywhere in its message or in its bytes, inspected; figures must be numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from corruption import Rng, corrupted, number, pick
from dialect_graphs import quantized_cnn
from google.protobuf.descriptor import FieldDescriptor
from kinds import Fault
from onnx import TensorProto, helper, numpy_helper

from subbyte.export import inspect

WORDS = ("", "x", "Conv", "MatMul", "DequantizeLinear", "If", "Loop", "subbyte", "com.microsoft", "ai.onnx.ml", "../x")


@dataclass(frozen=True)
class State:
    """Right files as messages, and a file of external data that one of them names."""

    models: list[onnx.ModelProto]
    external: bytes


def prepare(folder: Path) -> State:
    """Files of our exporter's form, of QDQ, with a function, with a subgraph, with external data."""
    values = np.random.default_rng(0).standard_normal(2048).astype(np.float32)
    return State(
        [quantized_cnn("ternary"), quantized_cnn("int4"), _qdq(), _function(), _branch(), _external()], values.tobytes()
    )


def case(state: State, rng: Rng, folder: Path) -> str:
    """A changed file, inspected."""
    model = onnx.ModelProto()
    model.CopyFrom(pick(rng, state.models))
    spoil = rng.random()
    if spoil < 0.85:
        for _ in range(int(pick(rng, (1, 1, 1, 2, 3)))):
            change(model, rng)
    data = model.SerializeToString()
    if spoil > 0.8:
        data = corrupted(data, rng)
    (folder / "given").mkdir()
    (folder / "given" / "weights.bin").write_bytes(state.external)
    path = folder / "given" / "model.onnx"
    path.write_bytes(data)
    found = inspect(path)
    text = json.dumps(dataclasses.asdict(found), default=str)
    if "NaN" in text.replace("NaN,", "") or "Infinity" in text:
        raise Fault("a figure that is no number")
    figures = (found.macs, found.parameters, found.parameter_bytes, found.float_bytes, found.file_bytes)
    layers = [value for layer in found.layers for value in (layer.macs, layer.parameter_bytes, layer.bits_per_weight)]
    if not all(value >= 0 for value in (*figures, *layers)) or found.file_bytes < len(data):
        raise Fault(f"figures {figures}")
    return "read"


# ---- changes ----


def change(model: onnx.ModelProto, rng: Rng) -> None:
    """One field anywhere in the message gets another value, or an element of a list goes, comes twice or moves."""
    message, field = pick(rng, list(_fields(model)))
    if _repeated(field):
        values = getattr(message, field.name)
        at = int(rng.integers(len(values)))
        way = rng.random()
        if way < 0.3:
            del values[at]
            return
        if way < 0.5:
            copies = list(values)
            copies.insert(int(rng.integers(len(copies) + 1)), copies[at])
            del values[:]
            values.extend(copies)
            return
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            values[at] = _value(field, values[at], model, rng)
        return
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        message.ClearField(field.name)
        return
    if rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), model, rng))


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set, of the message and of those in it."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if _repeated(field) else (value,):
                yield from _fields(inner)


def _value(field: Any, value: Any, model: onnx.ModelProto, rng: Rng) -> Any:
    kinds = FieldDescriptor
    if field.type == kinds.TYPE_STRING:
        names = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)]
        return pick(rng, (*WORDS, *names)) if rng.random() < 0.9 else value + "\x00\u00fc"
    if field.type == kinds.TYPE_BYTES:
        return corrupted(value, rng)
    if field.type in (kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE):
        return float(pick(rng, (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-45)))
    if field.type == kinds.TYPE_ENUM:
        return pick(rng, [word.number for word in field.enum_type.values])
    made = number(rng) if rng.random() < 0.7 else value + int(pick(rng, (-1, 1)))
    bits = {kinds.TYPE_UINT64: 64, kinds.TYPE_INT64: 63}.get(field.type, 31)
    return max(0 if bits == 64 else -(1 << bits), min(made, (1 << bits) - 1))


# ---- right files ----


def _made(nodes: list[Any], constants: dict[str, np.ndarray], **options: Any) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "made", [x], [y], tensors)
    opsets = options.pop("opset_imports", [helper.make_opsetid("", 21)])
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, **options)


def _qdq() -> onnx.ModelProto:
    constants = {
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
        "w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "w_scale": np.array([0.1, 0.2, 0.3], np.float32),
        "w_zero": np.zeros(3, np.int8),
        "b": np.zeros(3, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"], "dw", axis=1),
        helper.make_node("Gemm", ["d", "dw", "b"], ["y"], "gemm"),
    ]
    return _made(nodes, constants)


def _function() -> onnx.ModelProto:
    body = [helper.make_node("MatMul", ["a", "b"], ["t"], "product"), helper.make_node("Relu", ["t"], ["c"], "relu")]
    own, standard = helper.make_opsetid("own", 1), helper.make_opsetid("", 21)
    layer = helper.make_function("own", "Layer", ["a", "b"], ["c"], body, [standard])
    node = helper.make_node("Layer", ["x", "w"], ["y"], "layer", domain="own")
    weights = {"w": np.ones((4, 3), np.float32)}
    return _made([node], weights, opset_imports=[standard, own], functions=[layer])


def _branch() -> onnx.ModelProto:
    yes = helper.make_node("MatMul", ["x", "w"], ["yes"], "product")
    no = helper.make_node("Neg", ["yes_again"], ["no"], "negation")
    again = helper.make_node("MatMul", ["x", "w"], ["yes_again"], "again")
    output = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("yes", "no")]
    then, other = (
        helper.make_graph([yes], "then", [], output[:1]),
        helper.make_graph([again, no], "else", [], output[1:]),
    )
    node = helper.make_node("If", ["condition"], ["y"], "if", then_branch=then, else_branch=other)
    return _made([node], {"w": np.ones((4, 3), np.float32), "condition": np.array(True)})


def _external() -> onnx.ModelProto:
    model = _made([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"w": np.ones((4, 3), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "48")):
        tensor.external_data.add(key=key, value=value)
    return model
