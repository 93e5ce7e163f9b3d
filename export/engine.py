"""Runs exported files in onnxruntime, and returns their intermediate integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from subbyte.dialect.function import Quantizer, function_of
from subbyte.dialect.graph import view
from subbyte.dialect.layers import integer_sums
from subbyte.dialect.state import initial_value, states
from subbyte.errors import ExportError, InputError
from subbyte.export.onnx_file import load_onnx
from subbyte.onnx_files.loader import Source
from subbyte.onnx_files.onnxruntime import onnxruntime

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array]


def onnx_codes(path: Source) -> list[str]:
    """The values that are activation codes, in graph order: the first outputs of the dialect's quantizers."""
    model = load_onnx(path)
    calls = [(node, function_of(node)) for node in model.graph.node]
    return [node.output[0] for node, function in calls if function and isinstance(function.role, Quantizer)]


def products(path: Source) -> list[str]:
    """The values that are integer sums of quantized products: outputs of Conv or MatMul that a `Round` reads."""
    return integer_sums(view(load_onnx(path)))


def run_onnx(
    path: Source, inputs: Inputs, extra_outputs: Iterable[str] = (), *, optimized: bool = False
) -> dict[str, Array]:
    """Run a file in onnxruntime; returns its outputs and `extra_outputs` by name.

    `inputs` is one array, or a dict of all inputs but states. The first axis may be larger than the batch of the file:
    the samples are then run in batches (the last one padded with zeros) and the outputs concatenated. States begin with
    their initial values and go from batch to batch; their values after each are among the outputs. `optimized` selects
    ORT_ENABLE_ALL; the default, ORT_DISABLE_ALL, is the reference. Raises InputError for inputs of other names or
    shapes, and ExportError when onnxruntime refuses the file.
    """
    model = load_onnx(path)
    carried = states(model)
    session = open_session(with_outputs(model, extra_outputs), optimized=optimized)
    given = [spec for spec in session.get_inputs() if spec.name not in {state.input for state in carried}]
    feeds = _feeds(given, inputs)
    names = [output.name for output in session.get_outputs()]
    batch = _batch(given)
    samples = next(iter(feeds.values())).shape[0] if feeds and next(iter(feeds.values())).ndim else 0
    values = {state.input: initial_value(model, state) for state in carried}
    whole = batch is None or samples == batch
    slices = {name: [array] if whole else batches(array, batch or 1) for name, array in feeds.items()}
    runs: list[dict[str, Array]] = []
    for part in zip(*slices.values(), strict=True) if slices else [()]:
        fed = values | dict(zip(slices, part, strict=True))
        runs.append(dict(zip(names, session.run(names, fed), strict=True)))
        values = {state.input: runs[-1][state.output] for state in carried}
    if whole:
        return runs[0]
    return {name: joined([run[name] for run in runs], batch or 1, samples) for name in names}


def batches(samples: Array, batch: int) -> list[Array]:
    """Slices of `batch` samples; the last one is padded with zeros."""
    short = -len(samples) % batch
    if short:
        samples = np.concatenate([samples, np.zeros((short, *samples.shape[1:]), samples.dtype)])
    return [samples[start : start + batch] for start in range(0, len(samples), batch)]


def joined(parts: Sequence[Array], batch: int, samples: int) -> Array:
    """Results of `batches` concatenated along the first axis, without those of the zeros that `batches` added.

    A result whose first axis is not the batch is treated in the same way, so that engines can be compared on it.
    """
    kept = batch - -samples % batch
    arrays = [np.atleast_1d(part) for part in parts]
    return np.concatenate([*arrays[:-1], arrays[-1][: -(-len(arrays[-1]) * kept // batch)]])


def largest_accumulators(path: Source, inputs: Inputs) -> dict[str, float]:
    """The largest absolute integer sum of every quantized product of the file, by value name; exact below 2^24."""
    model = load_onnx(path)
    names = products(model)
    values = run_onnx(model, inputs, names)
    return {name: float(np.abs(values[name]).max(initial=0)) for name in names}


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these values as additional outputs; raises ExportError for an unknown value."""
    outputs = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(names) if name not in outputs]
    if not added:
        return model
    values = {name for node in model.graph.node for name in node.output} | {i.name for i in model.graph.input}
    unknown = [name for name in added if name not in values]
    if unknown:
        raise ExportError(f"the model has no value '{unknown[0]}'; give the name of a node's output")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # no type: onnxruntime infers it
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return copy


def open_session(model: onnx.ModelProto, *, optimized: bool) -> Any:
    """An onnxruntime session on one CPU thread; raises ExportError when onnxruntime refuses the model."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base for its errors
        raise ExportError(f"onnxruntime refuses the model: {str(error).strip().splitlines()[0]}") from error


def _feeds(expected: Sequence[Any], inputs: Inputs) -> dict[str, Array]:
    if isinstance(inputs, Mapping):
        given = {name: np.asarray(array) for name, array in inputs.items()}
    elif len(expected) == 1:
        given = {expected[0].name: np.asarray(inputs)}
    else:
        raise InputError(f"the model has {len(expected)} inputs; give a dict of {[i.name for i in expected]}")
    if set(given) != {i.name for i in expected}:
        raise InputError(f"inputs are named {sorted(given)}, the model expects {[i.name for i in expected]}")
    samples = {array.shape[0] for array in given.values() if array.ndim}
    if len(samples) > 1:
        raise InputError(f"inputs have different numbers of samples: {sorted(samples)}")
    for spec in expected:
        got, dims = given[spec.name].shape, tuple(spec.shape)
        matches = len(got) == len(dims) and all(
            a == b or not isinstance(b, int) for a, b in zip(got[1:], dims[1:], strict=True)
        )
        if not matches:
            raise InputError(f"input '{spec.name}' has shape {list(got)}, the model expects {list(dims)}")
    return given


def _batch(inputs: Sequence[Any]) -> int | None:
    first = inputs[0].shape if inputs else []
    return first[0] if first and isinstance(first[0], int) else None
