"""States as a file stores them, float32 or codes as uint8 (state.py writes them): read without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from subbyte.dialect.graph import GraphView, view
from subbyte.dialect.state import State, initial_value, states

Array = npt.NDArray[Any]


def in_file(graph: GraphView, state: State, values: Array) -> Array:
    """The value of a state in torch, float32, as the file has it: with the zero point added where that is uint8."""
    node = graph.producers[state.output]
    if node.op_type != "QuantizeLinear":
        return values
    codes: Array = np.rint(values + _zero_point(graph, node))  # codes are integers, but while training
    return np.clip(codes, 0, 255).astype(np.uint8)


def with_float_states(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with states of float32 where it stores codes as uint8; itself where there are none."""
    graph, carried = view(model), states(model)
    stored = {state: graph.producers[state.output] for state in carried if _stored_as_bytes(graph, state)}
    if not stored:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for state, last in stored.items():
        zero = _zero_point(graph, last)
        value = initial_value(model, state).astype(np.float32) - zero
        first = graph.consumers[state.input][0]
        for node in made.graph.node:
            if list(node.output) == list(first.output):
                node.CopyFrom(helper.make_node("Identity", [state.input], first.output, first.name))
            elif list(node.output) == [state.output]:
                node.CopyFrom(helper.make_node("Identity", [last.input[0]], [state.output], last.name))
        for values, name in ((made.graph.input, state.input), (made.graph.output, state.output)):
            value_of(values, name).type.tensor_type.elem_type = TensorProto.FLOAT
        tensors = [tensor for tensor in made.graph.initializer if tensor.name != state.input]
        del made.graph.initializer[:]
        made.graph.initializer.extend(tensors)
        if value.any():
            made.graph.initializer.append(numpy_helper.from_array(value, state.input))
    return made


def _stored_as_bytes(graph: GraphView, state: State) -> bool:
    """Whether a state is codes between DequantizeLinear and QuantizeLinear, as `export` writes it."""
    last, readers = graph.producers.get(state.output), graph.consumers.get(state.input, [])
    if last is None or last.op_type != "QuantizeLinear" or [node.op_type for node in readers] != ["DequantizeLinear"]:
        return False
    same = len(last.input) == 3 and list(last.input[1:]) == list(readers[0].input[1:])
    return same and graph.constant(last.input[2]) is not None and graph.constant(last.input[1]) == 1


def _zero_point(graph: GraphView, node: onnx.NodeProto) -> Array:
    """The zero point of a QuantizeLinear that `export` wrote."""
    zero = graph.constant(node.input[2])
    assert zero is not None
    return zero


def value_of(values: Any, name: str) -> onnx.ValueInfoProto:
    """The input or output of that name."""
    found: onnx.ValueInfoProto = next(value for value in values if value.name == name)
    return found
