"""A read-only view of an ONNX graph: producers, consumers, shapes and constants of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from subbyte.dialect.decode import low_bit, weights_of
from subbyte.dialect.function import Call
from subbyte.dialect.macs import Shapes
from subbyte.dialect.payloads import without_payloads
from subbyte.dialect.shapes import with_shapes
from subbyte.dialect.state import states
from subbyte.errors import FormatError, ModelError
from subbyte.formats import LowBitTensor

Array = npt.NDArray[Any]

_DATA_MOVEMENT = """
    Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape Slice SpaceToDepth Split
    Squeeze Tile Transpose Unsqueeze
"""
DATA_MOVEMENT = frozenset(_DATA_MOVEMENT.split())  # copy elements of their inputs unchanged: `moved_inputs`


@dataclass(frozen=True, eq=False)
class GraphView:
    """Indices of one graph, made by `view`."""

    model: onnx.ModelProto
    producers: dict[str, onnx.NodeProto]
    consumers: dict[str, list[onnx.NodeProto]]
    initializers: dict[str, onnx.TensorProto]
    types: dict[str, onnx.TypeProto]

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of a value; None if it is unknown or dynamic."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if name not in self.types or not self.types[name].tensor_type.HasField("shape"):
            return None
        dims = self.types[name].tensor_type.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or a Constant node; None for any other value."""
        if name in self.initializers:
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        return None

    def call(self, node: onnx.NodeProto) -> Call | None:
        """The inputs of a node; None if the shape of one is unknown."""
        shapes = [self.shape(name) for name in node.input]
        if None in shapes:
            return None
        return Call(tuple(s for s in shapes if s is not None), tuple(self.constant(name) for name in node.input))

    def shapes_of(self, node: onnx.NodeProto) -> Shapes:
        """The shapes of a node's inputs and first output, and its attributes, strings decoded."""
        values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        inputs = [self.shape(name) if name else () for name in node.input]
        return Shapes(inputs, self.shape(node.output[0]), attributes)

    def low_bit(self, node: onnx.NodeProto) -> LowBitTensor:
        """The weights of a `Decode*` (scale 1) or `Dequantize*` call; raises ModelError for a bad payload."""
        weights = weights_of(node)
        constants = [self.constant(name) for name in node.input]
        if weights is None:
            raise ModelError(f"'{node.name}' ({node.op_type}) does not decode weights")
        if any(value is None for value in constants):
            raise ModelError(f"'{node.name}' ({node.op_type}): its weights are not constants")
        try:
            return low_bit(weights, [value for value in constants if value is not None])
        except FormatError as error:
            raise ModelError(f"'{node.name}' ({node.op_type}): {error}") from error


def view(model: onnx.ModelProto) -> GraphView:
    """A view of the model's graph; shapes that the file does not give are inferred."""
    graph = model.graph
    try:
        inferred = with_shapes(without_payloads(model)).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = graph  # with the shapes that the file gives
    given = {state.input for state in states(model)}  # their initializers are initial values, not constants
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return GraphView(
        model,
        {name: node for node in graph.node for name in node.output if name},
        consumers,
        {tensor.name: tensor for tensor in graph.initializer if tensor.name not in given},
        {info.name: info.type for info in (*inferred.value_info, *inferred.input, *inferred.output)},
    )


def moved_inputs(node: onnx.NodeProto) -> list[str]:
    """The inputs whose elements a data movement copies: all of Concat, the data and the fill of Pad, else the first."""
    if node.op_type == "Pad":
        return [name for name in node.input[:3:2] if name]
    return list(node.input if node.op_type == "Concat" else node.input[:1])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute of a node, or the default."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default
