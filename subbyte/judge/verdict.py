"""The verdict: a bundle beside the float and the int8 version of the same model, in one interleaved run.

The float version is the ONNX file's *float baseline* (the same layers with quantizers removed and weights in float32),
or a float model that the caller names; the int8 version is what onnxruntime's own quantizer makes of it, or the file
itself where its activations are quantized by QuantizeLinear and DequantizeLinear. All three run
on the same inputs in turn, so that a drift of the machine affects all of them; ratios are taken within a round.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError, UnknownNameError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.judge.accuracy import refuse_other_samples, refuse_unscorable, scored_on
from subbyte.onnx_files.onnxruntime import onnxruntime
from subbyte.onnx_files.saturation import onnxruntime_saturates

if TYPE_CHECKING:
    from subbyte.dialect.state import State
    from subbyte.runtime import Session
    from subbyte.runtime.manifest import TensorInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Contender:
    """One version of the model: latency in ms, bytes on disk, test accuracy 0..1 (None where no data was given)."""

    name: str
    latency_min: float
    latency_median: float
    speedup_min: float  # its latency / the bundle's, from the minima; above 1 the bundle is faster
    speedup_median: float  # median over rounds of the ratio within a round
    nbytes: int  # of its ONNX file
    accuracy: float | None


@dataclass(frozen=True)
class Verdict:
    """What the comparison says; `warnings` names every way in which low-bit loses."""

    threads: int
    rounds: int
    contenders: tuple[Contender, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    float_source: str
    data: str | None  # whose test set scored the accuracy
    scored_on: str  # which output accuracy was scored on, where the model has several; else empty
    bundle_bytes: int
    deployed_bytes: int  # the library and the weights alone

    def __str__(self) -> str:
        return "\n".join([*self.sentences, *(f"warning: {warning}" for warning in self.warnings)])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sha256(path: Path) -> str:
    """The SHA-256 of an ONNX file, in hexadecimal; raises OSError for what is not read."""
    return hashlib.sha256(read_plain(path, limits.ONNX_BYTES)).hexdigest()


def find_onnx(bundle: Path, recorded: str) -> Path:
    """The ONNX file beside a bundle that has the recorded hash; raises UsageError when there is none."""
    for path in sorted(bundle.resolve().parent.glob("*.onnx")):
        with contextlib.suppress(OSError):
            if sha256(path) == recorded:
                return path
    raise UsageError(f"the ONNX file that '{bundle}' was made from is not beside it; name it with --onnx FILE")


@dataclass(frozen=True)
class Comparison:
    """All that a comparison needs, found and checked: see `prepare`."""

    bundle: Path
    manifest: Any
    file: Any  # OnnxFile
    floating: Any  # onnx.ModelProto
    float_source: str
    data: str | None
    test: tuple[Array, Array] | None  # inputs [N, ...], labels int64 [N]


def prepare(
    bundle: str | Path,
    *,
    onnx: str | Path | None = None,
    float_model: str | Path | None = None,
    data: str | None = None,
    data_path: str | Path | None = None,
    limit: int | None = None,
) -> Comparison:
    """Find what the bundle is compared with, before anything is measured.

    Without `data` the test set is that of the data the model was trained on, if the bundle names it and it is here.
    Accuracy is scored on the first output. Raises UsageError when the ONNX file cannot be found or is another, when the
    model has several inputs, when no float model can be made of it and none is given, when that does
    not run or has other inputs or outputs, or when the images or labels of `data` do not fit the model; DataError;
    ModelError for a damaged `float_model`.
    """
    from subbyte.export import float_baseline, load_onnx
    from subbyte.onnx_files.loader import open_onnx
    from subbyte.runtime import open_bundle

    bundle = Path(bundle)
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    recorded = str(manifest.source.get("onnx_sha256", ""))
    file = open_onnx(Path(onnx) if onnx else find_onnx(bundle, recorded))
    if file.sha256 != recorded:
        raise UsageError(f"'{bundle}' was not compiled from '{file.path}': name the file it was made from with --onnx")
    floating = load_onnx(str(float_model)) if float_model else float_baseline(file)
    source = str(float_model) if float_model else "float baseline of the same file (its weights, no quantizers)"
    _refuse_other_inputs(manifest)
    _refuse_another_model(manifest, floating, source)
    test: tuple[Array, Array] | None
    if manifest.states and data:
        raise UsageError(
            "the bundle has state: its accuracy is that of sequences, which a data set of single inputs does not say. "
            "Leave --data out"
        )
    if data:
        test = _test_arrays(data, data_path, limit)
        refuse_other_samples(test[0], manifest.inputs[0].shape[1:], manifest.inputs[0].dtype, data)
        _refuse_unscorable(manifest, floating, test[1], data)
    else:
        metadata = manifest.source.get("metadata")
        data = str(metadata.get("subbyte.data", "")) if isinstance(metadata, dict) and not manifest.states else ""
        test = _recorded_test_arrays(data, data_path, limit, manifest.inputs[0])
        try:
            if test is not None:
                _refuse_unscorable(manifest, floating, test[1], data)
        except UsageError:
            test = None
    return Comparison(bundle, manifest, file, floating, source, data if test is not None else None, test)


def compare(ready: Comparison, threads: int = 1, seconds: float = 3.0, turn: int = 1) -> Verdict:
    """Time the bundle, the float and the int8 model in turn for about `seconds` each, and score them on the test set.

    `turn` is how many calls of each are timed in a row (`runtime.benchmark.interleave`). Raises UsageError for a bundle
    that was replaced since `prepare`, and MissingDependencyError without the `export` extra.
    """
    import subbyte
    from subbyte.dialect.example_inputs import example_inputs
    from subbyte.export import int8_baseline, load_onnx
    from subbyte.export.state import with_float_states
    from subbyte.runtime.benchmark import interleave, pinned

    test, batch = ready.test, ready.manifest.inputs[0].shape[0]
    if test is None:
        calibration = [*example_inputs(load_onnx(ready.file)).values()]
    else:
        calibration = [test[0][i : i + batch] for i in range(0, 32 * batch, batch)]
    original = load_onnx(ready.file)
    kinds = {node.op_type for node in with_float_states(original).graph.node if not node.domain}
    itself = {"QuantizeLinear", "DequantizeLinear"} <= kinds
    integer = original if itself else int8_baseline(ready.floating, calibration)
    name = "onnxruntime QDQ (the file itself)" if itself else "onnxruntime int8"
    models = {"onnxruntime float32": ready.floating, name: integer}
    sizes = [ready.file.nbytes, ready.floating.ByteSize(), ready.file.nbytes if itself else integer.ByteSize()]
    sessions = {name: _onnx_session(model, threads) for name, model in models.items()}
    with pinned(threads), subbyte.load(ready.bundle, threads=threads) as session:
        if session.manifest != ready.manifest:
            raise UsageError(f"'{ready.bundle}' was replaced while the comparison was prepared; run again")
        # Each is bound to its buffers once, as an application does that refills them.
        calls: dict[str, Callable[[], object]] = {
            "subbyte": session.bind([calibration[0]], session.empty_outputs()),
            **{name: _bound(one, calibration[0], _initial(models[name])) for name, one in sessions.items()},
        }
        times = interleave(calls, seconds, turn)
        runs = [partial(_run, session), *(partial(_onnx_run, one) for one in sessions.values())]
        scores = [None if test is None else _accuracy(run, *test, batch) for run in runs]
    contenders = _contenders(times, sizes, scores)
    deployed = sum(m.bytes for name, m in ready.manifest.members.items() if name in ("library.so", "weights.bin"))
    sentences, warnings = judge(contenders)
    if not itself and onnxruntime_saturates():
        text = "onnxruntime int8 has weights of seven bits: on this CPU its products of eight saturate."
        sentences = (*sentences, text)
    if deployed > sizes[1]:
        text = f"low-bit loses: library and weights take {deployed:,} bytes, the float ONNX file alone {sizes[1]:,}"
        warnings = (*warnings, text)
    return Verdict(
        threads=threads,
        rounds=len(times["subbyte"]),
        contenders=contenders,
        sentences=sentences,
        warnings=warnings,
        float_source=ready.float_source,
        data=ready.data,
        scored_on=scored_on([output.name for output in ready.manifest.outputs]) if test is not None else "",
        bundle_bytes=ready.bundle.stat().st_size,
        deployed_bytes=deployed,
    )


def _contenders(
    times: dict[str, npt.NDArray[np.float64]], sizes: list[int], scores: list[float | None]
) -> tuple[Contender, ...]:
    """What was measured of each, the bundle first."""
    mine = times["subbyte"]
    return tuple(
        Contender(
            name,
            1e3 * float(taken.min()),
            1e3 * float(np.median(taken)),
            float(taken.min() / mine.min()),
            float(np.median(taken / mine)),
            nbytes,
            accuracy,
        )
        for (name, taken), nbytes, accuracy in zip(times.items(), sizes, scores, strict=True)
    )


def judge(contenders: tuple[Contender, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Plain sentences (faster, smaller, more accurate?), and a warning for each comparison that low-bit loses."""
    ours, *others = contenders
    sentences: list[str] = []
    warnings: list[str] = []
    for other in others:
        faster, smaller = other.speedup_median, other.nbytes / ours.nbytes
        parts = [
            f"{faster:.2f}x {'faster' if faster >= 1 else '(SLOWER)'} than {other.name}",
            f"{smaller:.1f}x {'smaller' if smaller >= 1 else '(LARGER)'} as an ONNX file",
        ]
        if faster < 1:
            warnings.append(f"low-bit loses: {other.name} is {1 / faster:.2f}x faster than the bundle on this machine")
        if smaller < 1:
            warnings.append(f"low-bit loses: the file of {other.name} is {1 / smaller:.2f}x smaller")
        if ours.accuracy is not None and other.accuracy is not None:
            points = 100 * (ours.accuracy - other.accuracy)
            parts.append(f"{points:+.2f} points of accuracy")
            if points < 0:
                warnings.append(f"low-bit loses {-points:.2f} points of accuracy against {other.name}")
        sentences.append("The bundle is " + ", ".join(parts) + ".")
    return tuple(sentences), tuple(warnings)


def _onnx_session(model: Any, threads: int) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Two spinning pools in one process would steal each other's cores: ours spins for at most 50 us, so may not theirs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: Session, x: Array) -> Array:
    """The first output."""
    outputs = session.empty_outputs()
    session.run_into([x], outputs)
    return outputs[0]


def _onnx_run(session: Any, x: Array, initial: Mapping[State, Array] | None = None) -> Array:
    values = {state.input: value for state, value in (initial or {}).items()}
    result: Array = session.run(None, values | {_input_name(session, values): x})[0]
    return result


def _input_name(session: Any, states: Collection[str]) -> str:
    """The input of a session that is not a state."""
    return next(str(one.name) for one in session.get_inputs() if one.name not in states)


def _initial(model: Any) -> dict[State, Array]:
    from subbyte.dialect.state import initial_value, states

    return {state: initial_value(model, state) for state in states(model)}


def _bound(session: Any, x: Array, initial: Mapping[State, Array]) -> Callable[[], object]:
    """A call of an onnxruntime session on fixed buffers: of a state two, which calls read and write in turn."""
    value = onnxruntime().OrtValue.ortvalue_from_numpy
    buffers = {state: [value(start.copy()), value(start.copy())] for state, start in initial.items()}
    bindings = [session.io_binding() for _ in range(2 if buffers else 1)]
    kept = {state.output for state in buffers}
    for turn, binding in enumerate(bindings):
        binding.bind_cpu_input(_input_name(session, {state.input for state in buffers}), x)
        for output in session.get_outputs():
            if output.name not in kept:
                binding.bind_output(output.name, "cpu")
        for state, pair in buffers.items():
            binding.bind_ortvalue_input(state.input, pair[turn])
            binding.bind_ortvalue_output(state.output, pair[1 - turn])
    if not buffers:
        return partial(session.run_with_iobinding, bindings[0])
    turns = itertools.cycle(bindings)
    return lambda: session.run_with_iobinding(next(turns))


def _refuse_other_inputs(manifest: Any) -> None:
    """Raise UsageError unless the bundle has one input, which all versions of the model are run on."""
    if len(manifest.inputs) != 1:
        given = ", ".join(f"'{tensor.name}' {tensor.dtype}" for tensor in manifest.inputs)
        raise UsageError(
            f"the bundle's inputs are {given or 'none'}; the comparison runs models of one input. Leave --baseline out"
        )


def _refuse_another_model(manifest: Any, floating: Any, source: str) -> None:
    """Raise UsageError unless the float model runs on the bundle's input, to a first output of the bundle's shape."""
    wanted = list(manifest.outputs[0].shape)
    zeros = np.zeros(manifest.inputs[0].shape, manifest.inputs[0].dtype)
    session = _onnx_session(floating, 1)
    try:
        got = list(_onnx_run(session, zeros, _initial(floating)).shape)
    except Exception as error:  # onnxruntime has kinds of its own
        raise UsageError(
            f"{source} does not run on the bundle's input, {zeros.dtype} {list(zeros.shape)}: {one_line(error)}. Name "
            "the float version of the same model with --float-model"
        ) from error
    if got != wanted:
        raise UsageError(
            f"the first output of {source} is {got}, the bundle's {wanted}: name the float version of the same model "
            "with --float-model"
        )


def _test_arrays(data: str, path: str | Path | None, limit: int | None) -> tuple[Array, Array]:
    from subbyte.models.data import load_data

    return load_data(data, path).test_arrays(limit)


def _refuse_unscorable(manifest: Any, floating: Any, labels: Array, data: str) -> None:
    """Raise UsageError where the first output of the bundle or of the float model cannot be logits for the labels."""
    from subbyte.export.verify import output_shapes

    refuse_unscorable(manifest.outputs[0].name, manifest.outputs[0].shape, labels, data)
    if floating.graph.output[0].type.tensor_type.HasField("shape"):
        name, shape = next(iter(output_shapes(floating).items()))
        refuse_unscorable(name, shape, labels, data, "the float model")


def _recorded_test_arrays(
    name: str, path: str | Path | None, limit: int | None, wanted: TensorInfo
) -> tuple[Array, Array] | None:
    """The test set that a bundle names; None if it names none, or one that is not on this machine or does not fit."""
    if not name:
        return None
    try:
        test = _test_arrays(name, path, limit)
        refuse_other_samples(test[0], wanted.shape[1:], wanted.dtype, name)
    except (DataError, UnknownNameError, UsageError, ImportError):
        return None
    return test


def _accuracy(run: Callable[[Array], Array], images: Array, labels: Array, batch: int) -> float:
    whole = len(images) - len(images) % batch
    right = 0
    for start in range(0, whole, batch):
        logits = run(np.ascontiguousarray(images[start : start + batch]))
        right += int((logits.argmax(-1) == labels[start : start + batch]).sum())
    return right / max(1, whole)
