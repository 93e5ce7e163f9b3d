"""Running an exported file in onnxruntime, and looking at the integers inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from subbyte.dialect.function import Quantizer, function_of
from subbyte.dialect.graph import view
from subbyte.dialect.layers import integer_sums
from subbyte.errors import ExportError, InputError
from subbyte.export.onnx_file import load_onnx
from subbyte.onnx_file import Source
from subbyte.onnx_runtime import onnxruntime

Array = npt.NDArray[Any]
Inputs = Array | Mapping[str, Array]


def onnx_codes(path: Source) -> list[str]:
    """The values that hold activation codes, in the order of the graph: first outputs of the subbyte quantizers."""
    model = load_onnx(path)
    calls = [(node, function_of(node)) for node in model.graph.node]
    return [node.output[0] for node, function in calls if function and isinstance(function.role, Quantizer)]


def products(path: Source) -> list[str]:
    """The values that hold the integer sums of quantized products: what a `Round` is fed with by Conv or MatMul."""
    return integer_sums(view(load_onnx(path)))


def run_onnx(
    path: Source, inputs: Inputs, extra_outputs: Iterable[str] = (), *, optimized: bool = False
) -> dict[str, Array]:
    """Run a file in onnxruntime: name -> array for its outputs and any other values asked for.

    `inputs` is one array, or a dict of all inputs. Leading axes may be longer than the file's batch: the samples are
    then run in slices of the batch (the last one filled up with zeros) and the outputs put together again. Not
    `optimized` means ORT_DISABLE_ALL, the reference; else ORT_ENABLE_ALL. Raises InputError for inputs that do not
    fit and ExportError when onnxruntime refuses the file.
    """
    model = load_onnx(path)
    session = open_session(with_outputs(model, extra_outputs), optimized=optimized)
    feeds = _feeds(session, inputs)
    names = [output.name for output in session.get_outputs()]
    batch = _batch(session)
    samples = next(iter(feeds.values())).shape[0] if feeds and next(iter(feeds.values())).ndim else 0
    if batch is None or samples == batch:
        return dict(zip(names, session.run(names, feeds), strict=True))
    slices = {name: batches(array, batch) for name, array in feeds.items()}
    parts = [session.run(names, dict(zip(slices, part, strict=True))) for part in zip(*slices.values(), strict=True)]
    return {name: joined([part[i] for part in parts], batch, samples) for i, name in enumerate(names)}


def batches(samples: Array, batch: int) -> list[Array]:
    """Slices of `batch` samples; the last one is filled up with zeros."""
    short = -len(samples) % batch
    if short:
        samples = np.concatenate([samples, np.zeros((short, *samples.shape[1:]), samples.dtype)])
    return [samples[start : start + batch] for start in range(0, len(samples), batch)]


def joined(parts: Sequence[Array], batch: int, samples: int) -> Array:
    """Results of slices put together along their first axis, without what is of the zeros that `batches` added.

    A result whose first axis is not the batch is put together and cut in the same way, so that engines can be compared
    on it.
    """
    kept = batch - -samples % batch
    whole = [np.atleast_1d(part) for part in parts]
    return np.concatenate([*whole[:-1], whole[-1][: -(-len(whole[-1]) * kept // batch)]])


def largest_accumulators(path: Source, inputs: Inputs) -> dict[str, float]:
    """Value name -> largest absolute sum seen, for every quantized product of the file; exact below 2^24."""
    model = load_onnx(path)
    names = products(model)
    values = run_onnx(model, inputs, names)
    return {name: float(np.abs(values[name]).max(initial=0)) for name in names}


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model that also gives these values as outputs; raises ExportError for one it does not have."""
    present = {output.name for output in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name not in present]
    if not wanted:
        return model
    made = {name for node in model.graph.node for name in node.output} | {i.name for i in model.graph.input}
    missing = [name for name in wanted if name not in made]
    if missing:
        raise ExportError(f"the model has no value '{missing[0]}' to look at")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # no type: onnxruntime infers it
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
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


def _feeds(session: Any, inputs: Inputs) -> dict[str, Array]:
    wanted = session.get_inputs()
    if isinstance(inputs, Mapping):
        given = {name: np.asarray(array) for name, array in inputs.items()}
    elif len(wanted) == 1:
        given = {wanted[0].name: np.asarray(inputs)}
    else:
        raise InputError(f"the model has {len(wanted)} inputs; give a dict of {[i.name for i in wanted]}")
    if set(given) != {i.name for i in wanted}:
        raise InputError(f"inputs are named {sorted(given)}, the model wants {[i.name for i in wanted]}")
    samples = {array.shape[0] for array in given.values() if array.ndim}
    if len(samples) > 1:
        raise InputError(f"inputs have different numbers of samples: {sorted(samples)}")
    for spec in wanted:
        got, dims = given[spec.name].shape, tuple(spec.shape)
        fits = len(got) == len(dims) and all(
            a == b or not isinstance(b, int) for a, b in zip(got[1:], dims[1:], strict=True)
        )
        if not fits:
            raise InputError(f"input '{spec.name}' has shape {list(got)}, the model wants {list(dims)}")
    return given


def _batch(session: Any) -> int | None:
    first = session.get_inputs()[0].shape if session.get_inputs() else []
    return first[0] if first and isinstance(first[0], int) else None
