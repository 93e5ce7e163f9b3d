"""`check`: the same inputs through every stage (torch, onnxruntime, the bundle), and the first layer that diverges.

The stages must agree bit for bit through quantized layers (docs/numbers.md). What is compared is the integers that
enter each quantized layer: they depend on everything before it. Where one differs, the value that torch rounded tells
the reason: near a tie, rounding of float arithmetic before it (softmax, normalization, exp); far from a tie, an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import UsageError
from subbyte.judge.scoring import ScoredData, read_test_set, scored_on

if TYPE_CHECKING:
    from torch import nn

    from subbyte.models.checkpoint import Checkpoint
    from subbyte.models.over_time import OverTime
    from subbyte.models.tasks import Metric, Task
    from subbyte.onnx_files.loader import OnnxFile
    from subbyte.runtime import Session

Array = npt.NDArray[Any]

STAGES = ("torch, training graph", "torch eval", "onnxruntime", "bundle")
CHUNK = 64  # samples that go through all stages together
NEAR_A_TIE = 1e-3  # of a step: farther than any float difference that the stages allow


@dataclass(frozen=True)
class OutputError:
    """One output of one stage against torch eval's."""

    name: str
    shape: tuple[int, ...]  # in the ONNX file
    largest: float  # |value| of torch eval
    max_error: float  # NaN where it cannot be measured, infinite where the shapes differ


@dataclass(frozen=True)
class Stage:
    """One stage against torch eval: its score by the task's metric (None without targets), and what differs.

    Predictions are read from the first output (None where the task has real values); `max_error` is the largest of all
    outputs.
    """

    name: str
    score: float | None
    changed_predictions: int | None
    differing_codes: int
    max_error: float
    outputs: tuple[OutputError, ...]


@dataclass(frozen=True)
class CheckReport:
    """What `check` found. `findings` are sentences; `diverged`: integers or outputs differ beyond tolerance.

    The tolerance of integers is zero, but for models with float parts between quantizers: docs/onnx-dialect.md.
    """

    samples: int
    stages: tuple[Stage, ...]
    quantized_layers: int
    largest_accumulator: int
    findings: tuple[str, ...]
    diverged: bool
    metric: Metric
    chance: float | None  # the score of a guess that does not look at the sample; None without targets

    def __str__(self) -> str:
        stages = [
            f"{stage.name}: {'' if stage.score is None else f'{self.metric.title} {self.metric.words(stage.score)}, '}"
            + ("" if stage.changed_predictions is None else f"{stage.changed_predictions:,} changed predictions, ")
            + f"{stage.differing_codes:,} differing integers, max error {stage.max_error:.3g}"
            for stage in self.stages
        ]
        for stage in self.stages if len(self.stages[0].outputs) > 1 else ():
            stages += [f"{stage.name}, output '{o.name}': max error {o.max_error:.3g}" for o in stage.outputs]
        return "\n".join([f"{self.samples:,} inputs, each stage against torch eval", *stages, *self.findings])


@dataclass
class _Difference:
    """Integers of one layer that differ in one stage."""

    count: int = 0
    total: int = 0
    worst_distance: float = 0.0  # from the nearest tie, in steps
    example: str = ""

    def add(self, expected: Array, got: Array, scaled: Array | None) -> None:
        self.total += expected.size
        wrong = np.nonzero(expected != got)
        if not wrong[0].size:
            return
        self.count += int(wrong[0].size)
        where = tuple(int(axis[0]) for axis in wrong)
        if not self.example:
            self.example = f"at {list(where)} torch has {expected[where]:g}, it has {got[where]:g}"
        if scaled is not None:
            distance = np.abs(np.abs(scaled[wrong] - np.floor(scaled[wrong])) - 0.5)
            self.worst_distance = float(np.maximum(self.worst_distance, distance.max()))  # NaN stays NaN
        else:
            self.worst_distance = np.inf


def check(
    checkpoint: str | Path | Checkpoint,
    onnx: str | Path,
    bundle: str | Path | None = None,
    *,
    data: str | None = None,
    data_path: str | Path | None = None,
    limit: int | None = None,
) -> CheckReport:
    """Run the test set (random inputs without `data`) through checkpoint, ONNX file and bundle, and compare.

    `checkpoint`: a folder, or what `load_checkpoint` gives, which makes models that are not of the zoo.
    `data` names a data set (see subbyte.models.data); `limit` takes its first samples only. All outputs are compared;
    the task of the checkpoint scores the first. A model with state begins from its initial state every 64 inputs, which
    are steps.
    A file with states of a model that runs over sequences (`OverTime`) is its step: the inputs are those of the steps,
    without a score. Raises UsageError when the three do not belong together (different numbers or shapes of quantized
    layers), or the first output is not what the task scores on this data; DataError.
    """
    import torch

    from subbyte.export import largest_accumulators, load_onnx, torch_observations
    from subbyte.export.verify import inexact_nodes, output_shapes
    from subbyte.models.checkpoint import load_checkpoint
    from subbyte.models.tasks import get_task
    from subbyte.onnx_files.loader import open_onnx

    loaded = load_checkpoint(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    opened = open_onnx(onnx)
    file = load_onnx(opened)
    model, sequences = _model_of(loaded, file)
    task = get_task(loaded.config.task, **loaded.config.task_options)
    test = None if data is None else _test_set(loaded, file, task, (data, data_path, limit))
    images, labels = (_random_inputs(file, limit), None) if test is None else (test.inputs, test.targets)
    if sequences is not None and test is not None:
        images, labels, test = sequences.inputs_of_steps(torch.from_numpy(images)).numpy(), None, None
    shapes = output_shapes(file)
    if test is not None:
        test.refuse_unscorable(*next(iter(shapes.items())))
    tally = {name: _Tally(task, loaded.config.shape, labels is not None, shapes) for name in STAGES}
    layers: dict[str, dict[str, _Difference]] = {"onnxruntime": {}, "bundle": {}}
    largest = 0
    names: list[str] = []
    with _open(bundle) as session, torch.no_grad():
        _refuse_a_stranger(session, opened)
        for start in range(0, len(images), CHUNK):
            x = images[start : start + CHUNK]
            y = None if labels is None else labels[start : start + CHUNK]
            expected, observed = torch_observations(model, x, file)
            names = list(observed)
            tally["torch eval"].add(expected, expected, y)
            tally["torch, training graph"].add(expected, _training_graph(model, x, file), y)
            for stage, outputs, values in _later_stages(file, names, session, x):
                tally[stage].add(expected, outputs, y)
                _compare(layers[stage], stage, observed, values)
            if start == 0:
                largest = int(max(largest_accumulators(file, x).values(), default=0))
    used = [name for name in tally if name != "bundle" or bundle is not None]
    stages = tuple(tally[name].stage(name, sum(d.count for d in layers.get(name, {}).values())) for name in used)
    compared = {name: found for name, found in layers.items() if name in used}
    findings, diverged = _explain(names, compared, tolerant=bool(inexact_nodes(file)))
    wrong = _outputs_differ(stages[2:], file)
    first = scored_on(list(shapes))
    if first:
        scored = "" if test is None else f" and {test.metric.title}"
        findings = (f"predictions{scored} are those of {first}", *findings)
    if sequences is not None and data is not None:
        findings = (f"{task.metric.title} is that of sequences: it is not scored on single steps", *findings)
    return CheckReport(
        samples=len(images),
        stages=stages,
        quantized_layers=len(names),
        largest_accumulator=largest,
        findings=(*findings, *wrong),
        diverged=diverged or bool(wrong),
        metric=task.metric,
        chance=None if test is None else test.chance(),
    )


class _Tally:
    """Counts of one stage over all samples."""

    def __init__(
        self, task: Task, input_shape: tuple[int, ...], labelled: bool, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.task, self.input_shape, self.shapes = task, input_shape, shapes
        self.score = task.score(input_shape) if labelled else None
        self.changed: int | None = None
        self.errors, self.largest = dict.fromkeys(shapes, 0.0), dict.fromkeys(shapes, 0.0)

    def add(self, expected: Mapping[str, Array], got: Mapping[str, Array], labels: Array | None) -> None:
        from subbyte.dialect.exactness import largest_of
        from subbyte.export.verify import largest_error

        for name in self.shapes:
            a, b = expected[name], got[name]
            error = largest_error(a, b) if a.shape == b.shape else np.inf
            self.errors[name] = float(np.maximum(self.errors[name], error))  # NaN stays NaN
            self.largest[name] = max(self.largest[name], largest_of(a))
        first = next(iter(self.shapes))
        before, after = (self._predictions(arrays[first]) for arrays in (expected, got))
        if before is not None and after is not None:
            changed = int((before != after).sum()) if before.shape == after.shape else before.size
            self.changed = changed + (self.changed or 0)
        if self.score is not None and labels is not None:
            self.score.add(got[first], labels)

    def _predictions(self, output: Array) -> Array | None:
        """What an output decides; integers are decisions themselves, as is the largest of an output without classes."""
        if output.dtype.kind != "f":
            return output
        axis = self.task.class_axis(self.input_shape)
        if axis is not None and output.ndim <= axis + 1:
            return np.asarray(np.atleast_1d(output).argmax(-1))
        return self.task.predictions(output, self.input_shape)

    def stage(self, name: str, differing: int) -> Stage:
        score = None if self.score is None else self.score.result()
        outputs = tuple(OutputError(o, self.shapes[o], self.largest[o], self.errors[o]) for o in self.shapes)
        error = float(np.max([output.max_error for output in outputs]))
        return Stage(name, score, self.changed, differing, error, outputs)


def _model_of(loaded: Checkpoint, file: Any) -> tuple[nn.Module, OverTime | None]:
    """The model that a file is of, in eval mode; and, where it is the step of one, the model over sequences."""
    from subbyte.dialect.state import states
    from subbyte.models.over_time import OverTime

    model = loaded.model.eval()
    return (model.step, model) if states(file) and isinstance(model, OverTime) else (model, None)


def _refuse_a_stranger(session: Session | None, onnx: OnnxFile) -> None:
    """Raise UsageError for a bundle that was not compiled from this ONNX file."""
    if session is not None and session.manifest.source.get("onnx_sha256") != onnx.sha256:
        raise UsageError(
            f"'{session.path}' was not compiled from '{onnx.path}': name the file it was made from, or compile again"
        )


def _outputs_differ(stages: Sequence[Stage], file: Any) -> list[str]:
    """A sentence for each output of a stage that is farther from torch's than its arithmetic allows."""
    from subbyte.export import onnx_codes
    from subbyte.export.verify import FLOAT_TOLERANCE, MIXED_TOLERANCE, allowed_error, inexact_nodes

    inexact = inexact_nodes(file)
    tolerance = 0.0 if not inexact else MIXED_TOLERANCE if onnx_codes(file) else FLOAT_TOLERANCE
    return [
        f"{stage.name}: outputs differ from torch's by {output.max_error:.3g}"
        + (f" in '{output.name}'" if len(stage.outputs) > 1 else "")
        + f", allowed are {allowed_error(tolerance, output.largest):.3g}"
        for stage in stages
        for output in stage.outputs
        if not output.max_error <= allowed_error(tolerance, output.largest)
    ]


class _NoSession:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _open(bundle: str | Path | None) -> Any:
    import subbyte

    return _NoSession() if bundle is None else subbyte.load(bundle, threads=1)


def _random_inputs(file: Any, limit: int | None) -> Array:
    from subbyte.dialect.example_inputs import example_inputs

    return next(iter(example_inputs(file, samples=limit or CHUNK).values()))


def _test_set(
    loaded: Checkpoint, file: Any, task: Task, asked: tuple[str, str | Path | None, int | None]
) -> ScoredData:
    """The test set that was asked for, in the form that was trained on where it is that data set."""
    from subbyte.dialect.example_inputs import inputs_of

    config = loaded.config
    test = read_test_set(*asked, task, config.data_options if asked[0] == config.data else {})
    test.refuse_other_model(config.shape, inputs_of(file)[0].dtype)
    return test


def _training_graph(model: Any, x: Array, file: Any) -> dict[str, Array]:
    """The fake-quantized float graph that was trained, with the statistics of eval mode."""
    from subbyte.export.verify import torch_outputs
    from subbyte.models.quant import fake_quantized

    with fake_quantized(model):
        return torch_outputs(model, x, file)


def _later_stages(
    file: Any, names: list[str], session: Any, x: Array
) -> Iterator[tuple[str, dict[str, Array], dict[str, Array]]]:
    """Stage, outputs by name and the codes by name, for onnxruntime and, if there is one, the bundle."""
    from subbyte.dialect.state import states
    from subbyte.export import run_onnx
    from subbyte.export.engine import batches, joined

    values = run_onnx(file, x, names)
    yield "onnxruntime", values, values
    if session is None:
        return
    batch = session.inputs[0].shape[0]
    runs: list[dict[str, Array]] = []
    session.reset()
    carried = states(file)
    for part in batches(x, batch):
        with session.state.kept():
            trace = session.trace(part)
        # A value stored before a Flatten or Reshape of the file goes by its name and a number, in the same order.
        trace |= {name.partition(":")[0]: value for name, value in trace.items() if name.partition(":")[0] not in trace}
        results = session.run([part])
        outputs = results if isinstance(results, dict) else {session.outputs[0].name: results}
        outputs |= {state.output: session.state[state.input] for state in carried}
        runs.append({name: value for name, value in trace.items() if name in names} | outputs)
    # One slice is left as it is, so that a scalar has no axis here if it has none in the file.
    merged = {n: runs[0][n] if len(x) == batch else joined([r[n] for r in runs], batch, len(x)) for n in runs[0]}
    yield "bundle", merged, {name: value for name, value in merged.items() if name in names}


def _compare(found: dict[str, _Difference], stage: str, observed: dict[str, Any], values: dict[str, Array]) -> None:
    for name, observation in observed.items():
        if name not in values:
            continue  # fused away: `_explain` says how many layers were compared
        expected, got = observation.codes.numpy(), values[name]
        if got.size != expected.size:
            raise UsageError(f"{stage}: '{name}' has shape {got.shape}, torch has {expected.shape}; compile it again")
        scaled = None if observation.inverse_step is None else (observation.values * observation.inverse_step).numpy()
        found.setdefault(name, _Difference()).add(expected, got.reshape(expected.shape).astype(np.float32), scaled)


def _explain(
    names: Sequence[str], layers: dict[str, dict[str, _Difference]], tolerant: bool
) -> tuple[tuple[str, ...], bool]:
    """Sentences, and whether integers differ by more than float arithmetic between the layers (`tolerant`) can do.

    A value on the other side of its tie changes what follows by whole steps, so only the first layer is held to ties.
    """
    from subbyte.export.verify import MIXED_CODES

    findings: list[str] = []
    diverged = False
    for stage, found in layers.items():
        wrong = [name for name in names if name in found and found[name].count]
        compared = sum(difference.total for difference in found.values())
        if not wrong:
            layers_seen = f"{len(found)} of {len(names)} quantized layers"
            findings.append(f"{stage}: all {compared:,} integers that enter {layers_seen} equal torch's")
            continue
        first = found[wrong[0]]
        near = first.worst_distance <= NEAR_A_TIE
        few = sum(found[name].count for name in wrong) <= MIXED_CODES * compared
        tolerated = tolerant and near and few
        diverged = diverged or not tolerated
        reason = (
            f"all of them within {first.worst_distance:.1g} steps of a rounding tie: float arithmetic before it differs"
            if near
            else "some of them far from any rounding tie: not a matter of rounding"
        )
        findings.append(
            f"{stage}: first divergent layer is '{wrong[0]}': {first.count} of {first.total:,} integers differ "
            f"({first.example}), {reason}; {len(wrong)} of {len(found)} layers differ"
            + (f", within the {MIXED_CODES:.0%} of integers that float parts may move" if tolerated else "")
        )
    return tuple(findings), diverged
