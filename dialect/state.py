"""The states of a file: values that live between calls, each a graph input and a graph output.

`metadata_props["subbyte.state"]` has one pair `in=out` a line. The value after a call is that of the output, the value
before the first call that of an initializer named like the input, else zeros. Other engines run the same file with the
state passed in and out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from subbyte.errors import ModelError, SubbyteError, UnknownNameError, UsageError

STATE_KEY = "subbyte.state"


@dataclass(frozen=True)
class State:
    """One state, by the names of its graph input and output."""

    input: str
    output: str

    def __str__(self) -> str:
        return f"{self.input}={self.output}"


def states(model: onnx.ModelProto, given: Sequence[str] = ()) -> tuple[State, ...]:
    """The states that a file declares, and those `given` as `in=out`, which may repeat them, in this order.

    Raises ModelError for what the file declares, UnknownNameError and UsageError for what is given: names that are not
    an input and an output of the graph, types or shapes that differ or are not static, and a name in two pairs.
    """
    found: dict[State, None] = {}
    for line in _declared(model):
        found.setdefault(_state(model, line, ModelError))
    for line in given:
        found.setdefault(_state(model, line, UsageError))
    kind = UsageError if given else ModelError
    for side in ("input", "output"):
        names = [getattr(state, side) for state in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise kind(f"two states have the {side} '{twice}': {', '.join(map(str, found))}; each needs its own")
    return tuple(found)


def declare_states(model: onnx.ModelProto, declared: Iterable[State]) -> None:
    """Write states into the metadata of a model, in place; nothing where there are none."""
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != STATE_KEY}
    text = "\n".join(map(str, declared))
    helper.set_model_props(model, kept | ({STATE_KEY: text} if text else {}))


def initial_value(model: onnx.ModelProto, state: State) -> npt.NDArray[Any]:
    """The value of a state before the first call; raises ModelError for an initializer of another type or shape."""
    dtype, shape = _type_of(model.graph.input, state.input)
    for tensor in model.graph.initializer:
        if tensor.name == state.input:
            if (tensor.data_type, tuple(tensor.dims)) != (dtype, shape):
                raise ModelError(
                    f"state '{state}': its initial value is {_kind(tensor.data_type)} {list(tensor.dims)}, the input "
                    f"{_kind(dtype)} {list(shape or ())}; export it again"
                )
            return np.asarray(numpy_helper.to_array(tensor))
    return np.zeros(shape or (), helper.tensor_dtype_to_np_dtype(dtype))


def _declared(model: onnx.ModelProto) -> list[str]:
    text = next((entry.value for entry in model.metadata_props if entry.key == STATE_KEY), "")
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]  # a name may hold other breaks


def _state(model: onnx.ModelProto, line: str, kind: type[SubbyteError]) -> State:
    """The pair of a line; a name may hold '=', so it is split where both sides are names of the graph."""
    if "\n" in line:
        raise kind(f"state {line!r} holds a line break, which ends a pair in the file; rename the value")
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    places = [at for at, letter in enumerate(line) if letter == "="]
    found = [(line[:at], line[at + 1 :]) for at in places if line[:at] in inputs and line[at + 1 :] in outputs]
    if len(found) > 1:
        raise kind(f"state '{line}' can be read as {len(found)} pairs of an input and an output; rename the values")
    if not found:
        _refuse(line, inputs, outputs, kind)
    state = State(*found[0])
    before, after = _type_of(model.graph.input, state.input), _type_of(model.graph.output, state.output)
    for (dtype, shape), name in ((before, state.input), (after, state.output)):
        if shape is None:
            raise kind(
                f"state '{line}': '{name}' has a dynamic shape; a state has a static one. Export with a fixed shape, "
                "or fix it with: python -m onnxruntime.tools.make_dynamic_shape_fixed"
            )
        if not dtype:
            raise kind(f"state '{line}': '{name}' is not a tensor of a known type")
    if before != after:
        raise kind(
            f"state '{line}': the input is {_kind(before[0])} {list(before[1] or ())}, the output {_kind(after[0])} "
            f"{list(after[1] or ())}; both must have one type and shape"
        )
    return state


def _refuse(line: str, inputs: list[str], outputs: list[str], kind: type[SubbyteError]) -> None:
    before, equals, after = line.partition("=")
    if not equals or not before or not after:
        raise kind(
            f"state '{line}' is not a pair 'input=output' of the graph; "
            f"inputs: {', '.join(inputs)}; outputs: {', '.join(outputs)}"
        )
    side, name, known = ("input", before, inputs) if before not in inputs else ("output", after, outputs)
    if kind is UsageError:
        raise UnknownNameError(f"{side} of state '{line}':", name, known)
    raise kind(f"state '{line}': the graph has no {side} '{name}'; it has {', '.join(known) or 'none'}")


def _type_of(values: Iterable[onnx.ValueInfoProto], name: str) -> tuple[int, tuple[int, ...] | None]:
    tensor = next(value.type.tensor_type for value in values if value.name == name)
    dims = tensor.shape.dim
    static = tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims)
    return int(tensor.elem_type), tuple(int(d.dim_value) for d in dims) if static else None


def _kind(dtype: int) -> str:
    return onnx.TensorProto.DataType.Name(dtype).lower() if dtype else "of no type"
