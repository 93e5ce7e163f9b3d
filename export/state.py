"""The states of a module in its file: a graph input and a graph output for each, codes as uint8.

While a module is traced, the values of its states are arguments of its forward and results of it. In the file the state
`cell.h` is the input `cell.h` and the output `cell.h_next`. A state that only ever holds integers of 8 bits (codes, and
those of its initial value) is stored as uint8, DequantizeLinear after its input and QuantizeLinear before its output
with scale 1 and zero point 0, or 128 for signed codes: exact in every engine, and the bytes that our kernels store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from subbyte.dialect.function import Quantizer, function_of
from subbyte.dialect.graph import GraphView, view
from subbyte.dialect.layers import copied_from
from subbyte.dialect.state import State, declare_states
from subbyte.errors import ExportError
from subbyte.export.outputs import INPUT, named_outputs
from subbyte.export.stored_states import value_of
from subbyte.formats import all_formats
from subbyte.models.state import named_states, set_states, states_as_attributes, states_kept

Array = npt.NDArray[Any]
Range = tuple[float, float]

NEXT = "{}_next"


def refuse_what_forward_did(before: Mapping[str, tuple[Tensor, int]], module: nn.Module) -> None:
    """Raise ExportError for a state that a forward wrote in place, or assigned a value of another type or shape."""
    for path, after in named_states(module).items():
        value, version = before[path]
        if value._version != version:
            raise ExportError(
                f"state '{path}' is written in place; compute a new tensor and assign it once: self.h = new, not "
                "self.h += x, self.h.copy_(new) or self.h[i] = x"
            )
        kept = isinstance(after, Tensor) and (after.dtype, after.shape) == (value.dtype, value.shape)
        if not kept:
            got = f"{after.dtype} {list(after.shape)}" if isinstance(after, Tensor) else type(after).__name__
            raise ExportError(
                f"state '{path}' is {value.dtype} {list(value.shape)} before the forward and {got} after it; a state "
                "keeps its type and shape"
            )


def versions(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """The states before a forward, for `refuse_what_forward_did`: each tensor and how often it was written to."""
    return {path: (value, value._version) for path, value in named_states(module).items()}


def state_names(module: nn.Module, outputs: list[str]) -> tuple[State, ...]:
    """The states of a module as pairs of the file; raises ExportError for one named like the input or an output."""
    found = tuple(State(path, NEXT.format(path)) for path in named_states(module))
    for state in found:
        taken = {INPUT, *outputs} & {state.input, state.output}
        if taken:
            raise ExportError(f"state '{state.input}': the file has another value '{taken.pop()}'; rename the state")
    return found


@contextmanager
def lifted(module: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Within this context `module(x, *states)` gives its outputs and its states as one tuple; gives the states' values.

    A module without states is as it was.
    """
    paths = tuple(named_states(module))
    if not paths:
        yield ()
        return
    forward = module.forward

    def with_states(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        with states_kept(module):
            set_states(module, dict(zip(paths, values, strict=True)))
            outputs = tuple(named_outputs(forward(x)).values())
            return *outputs, *named_states(module).values()

    module.__dict__["forward"] = with_states
    try:
        with states_as_attributes(module):
            yield tuple(value.clone() for value in named_states(module).values())
    finally:
        del module.__dict__["forward"]


def finish_states(model: onnx.ModelProto, module: nn.Module, lifted_states: tuple[State, ...]) -> Iterator[str]:
    """Give the states of a traced model their types and initial values, in place, and declare them; yields notes.

    Raises ExportError for a state that is read and never written.
    """
    initial = {path: value.numpy() for path, value in named_states(module).items()}
    kept: list[State] = []
    for state in lifted_states:
        copied = [node for node in model.graph.node if [*node.output] == [state.output] and node.op_type == "Identity"]
        unwritten = bool(copied) and copied[0].input[0] == state.input
        read = any(state.input in node.input for node in model.graph.node if not unwritten or node is not copied[0])
        if unwritten and read:
            raise ExportError(
                f"state '{state.input}' is read by the forward and never written; assign its new value, or make it a "
                "plain buffer"
            )
        if read:
            kept.append(state)
            continue
        if not unwritten:
            yield f"state '{state.input}' is written before it is read: it is not in the file"
        _drop(model, state)
    zeros = _zero_points(view(model), kept, initial)
    for state in kept:
        value = initial[state.input]
        if state in zeros:
            _store_as_bytes(model, state, zeros[state])
            value = (value + zeros[state]).astype(np.uint8)
        else:  # a quantizer's codes keep its name
            inside = _inside(model.graph, state.output)
            node = helper.make_node("Identity", [inside], [state.output], f"/{state.output.replace('.', '/')}/Identity")
            model.graph.node.append(node)
        if value.any():
            model.graph.initializer.append(numpy_helper.from_array(value, state.input))
    if kept:
        declare_states(model, kept)


def _drop(model: onnx.ModelProto, state: State) -> None:
    """Remove a state, and what computes it alone."""
    graph = model.graph
    for values, name in ((graph.input, state.input), (graph.output, state.output)):
        kept = [value for value in values if value.name != name]
        del values[:]
        values.extend(kept)
    while True:
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        alive = [node for node in graph.node if used.intersection(node.output)]
        if len(alive) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(alive)
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    made = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in made]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(tensors)
    graph.value_info.extend(infos)
    called = {node.op_type for node in graph.node}
    functions = [function for function in model.functions if function.name in called]
    del model.functions[:]
    model.functions.extend(functions)


# ---- bytes ----


def _zero_points(graph: GraphView, kept: list[State], initial: Mapping[str, Array]) -> dict[State, int]:
    """The zero point of each state that only ever holds integers of 8 bits."""
    ranges: dict[str, Range | None] = {state.input: _integers(initial[state.input]) for state in kept}
    for _ in kept:  # states may be copied to each other
        for state in kept:
            for source in copied_from(graph, state.output):
                found = ranges[source] if source in ranges else _range(graph, source)
                ranges[state.input] = _union(ranges[state.input], found)
    zeros: dict[State, int] = {}
    for state in kept:
        low, high = ranges[state.input] or (np.inf, np.inf)
        zero = 0 if low >= 0 else 128
        if -zero <= low and high <= 255 - zero:
            zeros[state] = zero
    return zeros


def _range(graph: GraphView, name: str) -> Range | None:
    """The range of a value that holds integers: the codes of a quantizer, or a constant."""
    constant, node = graph.constant(name), graph.producers.get(name)
    if constant is not None:
        return _integers(constant)
    function = None if node is None or node.output[0] != name else function_of(node)
    if node is None or function is None or not isinstance(function.role, Quantizer):
        return None
    name = function.role.codes(*map(graph.constant, node.input)).split()[0]
    values = next((np.asarray(f.levels.values) for f in all_formats() if f.name == name and f.levels.integer), None)
    return None if values is None else (float(values.min()), float(values.max()))


def _integers(values: Array) -> Range | None:
    return (float(values.min()), float(values.max())) if bool(np.all(values == np.rint(values))) else None


def _union(a: Range | None, b: Range | None) -> Range | None:
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))


def _store_as_bytes(model: onnx.ModelProto, state: State, zero: int) -> None:
    graph = model.graph
    before, after = (f"/{name.replace('.', '/')}" for name in (state.input, state.output))
    scale, point = f"{before}.scale", f"{before}.zero_point"
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), point))
    floats, codes = f"{before}/DequantizeLinear_output_0", _inside(graph, state.output)
    for node in graph.node:
        node.input[:] = [floats if name == state.input else name for name in node.input]
    shape = [d.dim_value for d in value_of(graph.input, state.input).type.tensor_type.shape.dim]
    graph.value_info.append(helper.make_tensor_value_info(floats, TensorProto.FLOAT, shape))
    inside = ([state.input, scale, point], [floats]), ([codes, scale, point], [state.output])
    first, last = (
        helper.make_node(op, *names, f"{path}/{op}")
        for op, names, path in zip(("DequantizeLinear", "QuantizeLinear"), inside, (before, after), strict=True)
    )
    graph.node.insert(0, first)
    graph.node.append(last)
    for values, name in ((graph.input, state.input), (graph.output, state.output)):
        value_of(values, name).type.tensor_type.elem_type = TensorProto.UINT8


def _inside(graph: onnx.GraphProto, output: str) -> str:
    """Give the value of an output the name that its node gives it inside the graph, which is returned."""
    producer = next(node for node in graph.node if output in node.output)
    if producer.op_type == "Identity":
        graph.node.remove(producer)
        return str(producer.input[0])
    name = f"{producer.name}_output_{list(producer.output).index(output)}"
    for node in graph.node:
        node.input[:] = [name if given == output else given for given in node.input]
        node.output[:] = [name if made == output else made for made in node.output]
    info = onnx.ValueInfoProto()
    info.CopyFrom(value_of(graph.output, output))
    info.name = name
    graph.value_info.append(info)
    return name
