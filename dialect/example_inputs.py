"""Example inputs of a model: random ones that it accepts, for golden runs, comparisons and measurements without data.

An integer that indexes a table must be in its range. `index_ranges` traces every index from the operator that reads it
back to the inputs that it is computed from; a row of `_BACK` gives the ranges of an operator's inputs for a range of
its output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper

from subbyte.dialect.graph import GraphView, view
from subbyte.dialect.indices import INDEXED
from subbyte.dialect.macs import UnknownShape
from subbyte.dialect.state import states

Array = npt.NDArray[Any]
Range = tuple[int, int]  # both ends included

USUAL = (0, 127)  # integers that index nothing; those of 8 bits have the range of their dtype


class Input(Protocol):
    """What is known of an input of a model."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class InputOfFile:
    """An input of an ONNX model, as the file gives it; a dynamic size is 1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def inputs_of(model: onnx.ModelProto) -> list[InputOfFile]:
    """The inputs of a model that are neither states nor initializers, in order."""
    known = {tensor.name for tensor in model.graph.initializer} | {state.input for state in states(model)}
    found = []
    for value in model.graph.input:
        if value.name not in known:
            kind = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            found.append(InputOfFile(value.name, dtype, tuple(dim.dim_value or 1 for dim in kind.shape.dim)))
    return found


def example_inputs(model: onnx.ModelProto, samples: int | None = None, seed: int = 0) -> dict[str, Array]:
    """Random inputs that the model accepts, by name; `samples` in place of the batch of the file."""
    given = inputs_of(model)
    if samples is not None:
        given = [InputOfFile(one.name, one.dtype, (samples, *one.shape[1:])) for one in given]
    ranges = index_ranges(model) if indexes_by_input(model) else {}
    return dict(zip((one.name for one in given), random_inputs(given, seed, ranges), strict=True))


def random_inputs(inputs: Sequence[Input], seed: int = 0, ranges: Mapping[str, Range] | None = None) -> list[Array]:
    """Seeded inputs: integers of `ranges` for those that it names, else of 8 bits or `USUAL`; normal floats."""
    rng = np.random.default_rng(seed)
    made = []
    for tensor in inputs:
        if tensor.name in (ranges or {}):
            low, high = (ranges or {})[tensor.name]
            made.append(rng.integers(low, high, tensor.shape, endpoint=True).astype(tensor.dtype))
        elif tensor.dtype.startswith("float"):
            made.append(rng.standard_normal(tensor.shape, np.float32).astype(tensor.dtype))
        else:
            low, high = _whole_range(tensor.dtype) or USUAL
            made.append(rng.integers(low, high, tensor.shape, endpoint=True).astype(tensor.dtype))
    return made


def _whole_range(dtype: str) -> Range | None:
    """All values of an integer type of at most 8 bits; None for any other."""
    known = re.fullmatch(r"(u?)int([248])", dtype)
    if known is None:
        return None
    values = 1 << int(known[2])
    return (0, values - 1) if known[1] else (-(values // 2), values // 2 - 1)


def index_ranges(model: onnx.ModelProto) -> dict[str, Range]:
    """The range of every input that indexes, not below 0 where it may be above; functions are not looked into."""
    found = _Ranges(view(model))
    for node in found.graph.nodes:
        if node.op_type in _INDEXED and not node.domain:
            name, size = _index(found, node) or ("", 0)
            if name and size:
                found.restrict(name, 0, size - 1)
    return {name: (max(0, low) if high >= 0 else low, high) for name, (low, high) in found.ranges.items()}


def indexes_by_input(model: onnx.ModelProto) -> bool:
    """Whether an input may be an index: a quick check, which spares most models the inference of shapes."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    kinds = {node.op_type for node in nodes}
    types = {value.type.tensor_type.elem_type for value in model.graph.input}
    return bool(kinds & _INDEXED) and ("Cast" in kinds or types != {onnx.TensorProto.FLOAT})


class _Ranges:
    """A graph, and the ranges of its inputs, which are filled while indices are traced."""

    def __init__(self, graph: GraphView) -> None:
        self.graph = graph
        self.inputs = {value.name for value in graph.model.graph.input} - graph.initializers.keys()
        self.ranges: dict[str, Range] = {}
        self._seen: set[tuple[str, int, int]] = set()

    def restrict(self, name: str, low: int, high: int) -> None:
        """Restrict the value `name` to low .. high, and the inputs that it is computed from."""
        if low > high or (name, low, high) in self._seen:
            return
        self._seen.add((name, low, high))
        if name in self.inputs:
            before = self.ranges.get(name, (low, high))
            both = max(before[0], low), min(before[1], high)
            self.ranges[name] = both if both[0] <= both[1] else before
        node = self.graph.producers.get(name)
        back = _BACK.get(node.op_type) if node is not None and not node.domain else None
        if node is not None and back is not None:
            for source, (least, most) in back(self, node, low, high):
                self.restrict(source, least, most)


# ---- indexed operators ----


def _index(view: _Ranges, node: onnx.NodeProto) -> tuple[str, int] | None:
    """The indices that a node reads, and how many rows the least of their axes has; None where these are not known."""
    if node.op_type == "OneHot":  # no error beyond its depth, but a row of off values
        depth = view.graph.constant(node.input[1])
        return None if depth is None or depth.size != 1 else (node.input[0], int(depth.reshape(())))
    if node.op_type in _INDEXED_BY_BODY:
        table, axis, index = _INDEXED_BY_BODY[node.op_type]
        shape = view.graph.shape(node.input[table]) or ()
        given = len(node.input) > index and len(shape) > axis
        return (node.input[index], shape[axis]) if given else None
    indexed = INDEXED[node.op_type]
    try:
        sizes = indexed.sizes(view.graph.shapes_of(node))
    except (IndexError, UnknownShape):
        return None  # an axis that the file does not have is refused elsewhere
    return (node.input[indexed.input], min(sizes)) if sizes else None


# What the body of their schema indexes: the input with the rows, its axis, the input with the indices.
_INDEXED_BY_BODY = {
    "NegativeLogLikelihoodLoss": (0, 1, 1),
    "RotaryEmbedding": (1, 0, 3),
    "SoftmaxCrossEntropyLoss": (0, 1, 1),
}
_INDEXED = {*INDEXED, *_INDEXED_BY_BODY, "OneHot"}


# ---- ranges of an operator's inputs for a range of its output ----

Sources = list[tuple[str, Range]]
_Back = Callable[[_Ranges, onnx.NodeProto, int, int], Sources]


def _first(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    return [(node.input[0], (low, high))]


def _every(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    return [(name, (low, high)) for name in node.input if name]


def _chosen(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    return [(name, (low, high)) for name in node.input[1:]]


def _with_constant(view: _Ranges, node: onnx.NodeProto) -> tuple[str, int, int, bool] | None:
    """The operand that varies, least and largest of the constant one, and whether the constant is the second."""
    for place in (1, 0):
        known = view.graph.constant(node.input[place])
        if known is not None and known.size and np.isfinite(known).all():
            return node.input[1 - place], int(np.floor(known.min())), int(np.ceil(known.max())), place == 1
    return None


def _add(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    found = _with_constant(view, node)
    if found is None:  # two values that vary share the range
        return [(name, (-(-low // 2), high // 2)) for name in node.input]
    return [(found[0], (low - found[1], high - found[2]))]


def _sub(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    found = _with_constant(view, node)
    if found is None:
        return []
    name, least, most, second = found
    return [(name, (low + most, high + least) if second else (most - high, least - low))]


def _neg(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    return [(node.input[0], (-high, -low))]


def _mul(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    found = _with_constant(view, node)
    if found is None or found[1] < 1:
        return []
    return [(found[0], (-(-low // found[2]), high // found[2]))]


def _div(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    found = _with_constant(view, node)
    if found is None or not found[3] or found[1] < 1:
        return []
    return [(found[0], (low * found[1], high * found[1]))]


def _mod(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    found = _with_constant(view, node)
    inside = found is not None and found[3] and found[1] >= 1 and low <= 0 and found[2] - 1 <= high
    return [] if inside else [(node.input[0], (low, high))]


def _clip(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    ends = [view.graph.constant(name) if name else None for name in node.input[1:3]]
    inside = len(ends) == 2 and all(e is not None and e.size == 1 and low <= int(e.reshape(())) <= high for e in ends)
    return [] if inside else [(node.input[0], (low, high))]


def _reduce_sum(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    """Each of the terms gets an equal part of the range."""
    terms, sums = (view.graph.shape(name) for name in (node.input[0], node.output[0]))
    count = math.prod(terms) // max(1, math.prod(sums)) if terms is not None and sums is not None else 0
    return [(node.input[0], (-(-low // count), high // count))] if count else []


def _cum_sum(view: _Ranges, node: onnx.NodeProto, low: int, high: int) -> Sources:
    """The first sum is one term (or none), the last is of all."""
    shape, axis = view.graph.shape(node.input[0]), view.graph.constant(node.input[1])
    if not shape or axis is None or axis.size != 1 or not -len(shape) <= int(axis.reshape(())) < len(shape):
        return []
    count = max(1, shape[int(axis.reshape(()))])
    return [(node.input[0], (low if low > 0 else -(-low // count), high if high < 0 else high // count))]


_SAME_NUMBERS = """
    Abs Cast Ceil Expand Flatten Floor Gather GatherElements GatherND Identity MaxPool Pad ReduceMax ReduceMean
    ReduceMin Relu Reshape Round Slice Split Squeeze Tile Transpose Unsqueeze
"""  # as their first input, or nearly
_BACK: dict[str, _Back] = {
    **dict.fromkeys(_SAME_NUMBERS.split(), _first),
    **dict.fromkeys(("Concat", "Max", "Min"), _every),
    "Where": _chosen,
    "Add": _add,
    "Sub": _sub,
    "Neg": _neg,
    "Mul": _mul,
    "Div": _div,
    "Mod": _mod,
    "Clip": _clip,
    "ReduceSum": _reduce_sum,
    "CumSum": _cum_sum,
}
