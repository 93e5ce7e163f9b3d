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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError, UnknownNameError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.judge.scoring import ScoredData, read_test_set, recorded, scored_on
from subbyte.onnx_files.onnxruntime import onnxruntime
from subbyte.onnx_files.saturation import onnxruntime_saturates

if TYPE_CHECKING:
    from subbyte.dialect.state import State
    from subbyte.models.tasks import Metric
    from subbyte.runtime import Session

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Contender:
    """One version of the model: latency in ms, bytes on disk, score on the test set (None where no data was given)."""

    name: str
    latency_min: float
    latency_median: float
    speedup_min: float  # its latency / the bundle's, from the minima; above 1 the bundle is faster
    speedup_median: float  # median over rounds of the ratio within a round
    nbytes: int  # of its ONNX file
    score: float | None


@dataclass(frozen=True)
class Verdict:
    """What the comparison says; `warnings` names every way in which low-bit loses."""

    threads: int
    rounds: int
    contenders: tuple[Contender, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    float_source: str
    data: str | None  # whose test set they were scored on
    metric: Metric | None  # by which; None where they were not
    chance: float | None  # the score of a guess that does not look at the sample
    scored_on: str  # which output was scored, where the model has several; else empty
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
    test: ScoredData | None


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
    if manifest.states and data:
        raise UsageError(
            "the bundle has state: its accuracy is that of sequences, which a data set of single inputs does not say. "
            "Leave --data out"
        )
    test = None if manifest.states else _test_set(manifest, floating, (data, data_path, limit))
    return Comparison(bundle, manifest, file, floating, source, test)


def compare(ready: Comparison, threads: int = 1, seconds: float = 3.0, turn: int = 1) -> Verdict:
    """Time the bundle, the float and the int8 model in turn for about `seconds` each, and score them on the test set.

    `turn` is how many calls of each are timed in a row (`runtime.benchmark.interleave`). Raises UsageError for a bundle
    that was replaced since `prepare`, and MissingDependencyError without the `export` extra.
    """
    import subbyte
    from subbyte.dialect.example_inputs import example_inputs
    from subbyte.export import int8_baseline, load_onnx
    from subbyte.export.stored_states import with_float_states
    from subbyte.runtime.benchmark import interleave, pinned

    test, batch = ready.test, ready.manifest.inputs[0].shape[0]
    if test is None:
        calibration = [*example_inputs(load_onnx(ready.file)).values()]
    else:
        whole = len(test.inputs) - len(test.inputs) % batch
        calibration = [test.inputs[i : i + batch] for i in range(0, min(32 * batch, whole), batch)]
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
        scores = [None if test is None else test.score(_outputs(run, test.inputs, batch)) for run in runs]
    contenders = _contenders(times, sizes, scores)
    deployed = sum(m.bytes for name, m in ready.manifest.members.items() if name in ("library.so", "weights.bin"))
    metric = None if test is None else test.metric
    sentences, warnings = judge(contenders, metric)
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
        data=None if test is None else test.data.name,
        metric=metric,
        chance=None if test is None else test.chance(),
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
            score,
        )
        for (name, taken), nbytes, score in zip(times.items(), sizes, scores, strict=True)
    )


def judge(contenders: tuple[Contender, ...], metric: Metric | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Plain sentences (faster, smaller, better?), and a warning for each comparison that low-bit loses."""
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
        if metric is not None and ours.score is not None and other.score is not None:
            more, unit = ours.score - other.score, metric.title
            if metric.percent:
                more, unit = 100 * more, f"points of {metric.title}"
            parts.append(f"{more:+.2f} {unit}" if metric.percent else f"{more:+.4g} {unit}")
            if metric.better(more) < 0:
                size = f"{abs(more):.2f}" if metric.percent else f"{abs(more):.4g}"
                warnings.append(f"low-bit loses {size} {unit} against {other.name}")
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


def _test_set(
    manifest: Any, floating: Any, asked: tuple[str | None, str | Path | None, int | None]
) -> ScoredData | None:
    """The test set that was asked for, else the one that the bundle names, where that is here and fits.

    The task is the bundle's, else that of the data.
    """
    from subbyte.models.tasks import get_task

    given = manifest.source.get("metadata")
    metadata: Mapping[str, Any] = given if isinstance(given, dict) else {}
    named = str(metadata.get("subbyte.data", ""))
    name = asked[0] or named
    try:
        if not name:
            return None
        known = metadata.get("subbyte.task")
        task = get_task(str(known), **recorded(metadata, "subbyte.task_options")) if known else None
        options = recorded(metadata, "subbyte.data_options") if name == named else {}
        test = read_test_set(name, *asked[1:], task, options)
        _refuse_misfit(manifest, floating, test)
    except (DataError, UnknownNameError, UsageError, ImportError):
        if asked[0]:
            raise
        return None
    return test


def _refuse_misfit(manifest: Any, floating: Any, test: ScoredData) -> None:
    """Raise UsageError where a test set has other inputs, or the bundle or the float model has another first output."""
    from subbyte.export.verify import output_shapes

    batch, *shape = manifest.inputs[0].shape
    test.refuse_other_model(shape, manifest.inputs[0].dtype)
    test.refuse_unscorable(manifest.outputs[0].name, manifest.outputs[0].shape)
    if floating.graph.output[0].type.tensor_type.HasField("shape"):
        test.refuse_unscorable(*next(iter(output_shapes(floating).items())), "the float model")
    if len(test.inputs) < batch:
        raise UsageError(f"data set '{test.data.name}' gives {len(test.inputs)} samples, a run takes {batch}")


def _outputs(run: Callable[[Array], Array], inputs: Array, batch: int) -> Iterator[Array]:
    """The outputs of all whole batches."""
    for start in range(0, len(inputs) - len(inputs) % batch, batch):
        yield run(np.ascontiguousarray(inputs[start : start + batch]))
