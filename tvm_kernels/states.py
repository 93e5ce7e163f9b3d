"""The states of a file that is compiled: values that live between runs, declared as dialect/state.py says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from subbyte.dialect.state import State, declare_states, initial_value, states
from subbyte.errors import ModelError, UsageError
from subbyte.onnx_files.loader import OnnxFile, Source, naming, open_onnx
from subbyte.tvm_kernels.graph import Graph


def with_states(source: Source, given: Sequence[str] = ()) -> OnnxFile:
    """The file with its states, those `given` as `in=out` too: plain inputs, their initial values apart.

    To ONNX an initializer of an input's name is a default, and to whatever folds constants a constant. Raises
    UsageError and ModelError for pairs that are none, and for a file without an output besides.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(pair, str) for pair in given):
        raise UsageError(f"state is {given!r}, expected a list of pairs 'input=output', such as ['h=h_next']")
    file = open_onnx(source)
    if file.states is not None and not given:
        return file
    with naming(file.path):
        found = states(file.model, given)
        initial = {state: initial_value(file.model, state) for state in found}
        for state, value in initial.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ModelError(f"state '{state}': its initial value holds NaN or infinity; export it again")
        if found and len(found) == len(file.model.graph.output):
            raise ModelError(
                f"every output is the next value of a state ({', '.join(map(str, found))}), so a run has nothing to "
                "return; add an output, such as an Identity of one of them"
            )
    return replace(file.of_model(_as_inputs(file.model, found)), states=initial)


def _as_inputs(model: onnx.ModelProto, found: Sequence[State]) -> onnx.ModelProto:
    """The model with these states declared and without initializers of their names; itself where that is so."""
    names = {state.input for state in found}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    if states(model) == tuple(found) and len(kept) == len(model.graph.initializer):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    declare_states(changed, found)
    return changed


def set_states(graph: Graph, file: OnnxFile) -> None:
    """Give a graph the states of its file; raises ModelError where the shape or type that follows is another."""
    for state, initial in (file.states or {}).items():
        before, after = graph.values[state.input], graph.values[state.output]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise ModelError(
                f"state '{state}': the input is {before.dtype} {list(before.shape)}, the output becomes {after.dtype} "
                f"{list(after.shape)}; both must have one type and shape"
            )
        graph.states[state] = initial
