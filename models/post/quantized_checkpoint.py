"""`subbyte.quantize`: a float checkpoint or module to a quantized one, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import CheckpointError, DataError, UsageError
from subbyte.files.output import check_output_folder
from subbyte.models.checkpoint import Checkpoint, Config, load_checkpoint, recipe_of, save_checkpoint, versions
from subbyte.models.checkpoint_files import STATE, files_of
from subbyte.models.data import Data, load_data
from subbyte.models.post.apply import post_train
from subbyte.models.post.calibration_data import calibration_batches
from subbyte.models.post.reporting import reporting, tracked
from subbyte.models.post.settings import PostTraining, settings_of
from subbyte.models.quant import Recipe, recipe_data
from subbyte.models.tasks import Metric, Task, get_task
from subbyte.models.train.batches import EpochBatches, batch_loader

TESTED = 256  # samples of a batch that is scored


@dataclass(frozen=True)
class PostResult:
    """The quantized model, in eval mode; where its checkpoint is; its score on the test set and the float model's.

    `notes`: what was left as it is, and why.
    """

    model: nn.Module
    folder: Path | None
    score: float
    float_score: float
    metric: Metric
    samples: int  # that it was calibrated on
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The score, 0 to 1, where the task's metric is an accuracy; raises UsageError for another."""
        return self._accuracy(self.score)

    @property
    def float_accuracy(self) -> float:
        """The float model's score, as `accuracy`."""
        return self._accuracy(self.float_score)

    def _accuracy(self, score: float) -> float:
        if self.metric.name != "accuracy":
            raise UsageError(f"the task is scored by {self.metric.title}, not by accuracy: read `score`.")
        return score

    def __str__(self) -> str:
        place = "" if self.folder is None else f"{self.folder}: "
        text = (
            f"{place}calibrated on {self.samples} samples, test {self.metric.title} {self.metric.words(self.score)} "
            f"(float {self.metric.words(self.float_score)})"
        )
        return "\n".join([text, *self.notes])


def quantize(
    source: str | Path | Checkpoint,
    /,
    *,
    out: str | Path | None = None,
    data: str | Data | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **fields: Any,
) -> PostResult:
    """Quantize a float checkpoint without training, and write the result as a checkpoint to the folder `out`.

        quantize("runs/float", scheme="int8", calibrator="entropy", out="runs/int8")
        quantize("runs/float", recipe="r.yaml", steps=["adaround", "bias-correction"], samples=1024, out="runs/w4")

    The keywords are the fields of `PostTraining`. `source`: a folder, or what `load_checkpoint(folder, model=...)`
    gives of a module of your own; it is not changed. `data`: the name of a data set, or a `Data`; by default what the
    checkpoint was trained on. Without `out` nothing is written. A module without a checkpoint is quantized by
    `subbyte.models.post.post_train`.

    Raises UsageError for names and options that do not fit and for an `out` that is taken, CheckpointError for a
    checkpoint that is damaged or quantized already, DataError for data that cannot be calibrated with,
    QuantizationError for a layer that cannot be quantized as asked. Nothing is written then.
    """
    settings = settings_of({**fields, **({} if isinstance(data, Data) else {"data": data})})
    recipe = settings.chosen_recipe()
    checkpoint = _float_checkpoint(source)
    if out is not None:
        _refuse_taken(Path(out), checkpoint.folder, overwrite)
    found = data if isinstance(data, Data) else _data(settings, checkpoint.config)
    _refuse_other_data(found, checkpoint.config)
    task = get_task(checkpoint.config.task, **checkpoint.config.task_options)
    task.check(found)
    batches = calibration_batches(found, settings.samples, settings.batch_size, settings.seed)
    with reporting(progress) as report:
        before = scored(checkpoint.model, found, task, "float model on the test set")
        model = post_train(copy.deepcopy(checkpoint.model), batches, recipe, settings.calibration, settings.calls)
        after = scored(model, found, task, "quantized model on the test set")
    count = sum(len(batch) for batch in batches)
    config = _config(checkpoint, recipe, settings, settings.record(found.name, count))
    if out is not None:
        trained = {name: value for name, value in checkpoint.metrics.items() if name == "epochs"}
        save_checkpoint(out, model, config, {**trained, task.metric.name: after, f"float_{task.metric.name}": before})
        (Path(out) / STATE).unlink(missing_ok=True)  # of a run that was replaced: nothing goes on from it
    folder = None if out is None else Path(out)
    return PostResult(model, folder, after, before, task.metric, count, tuple(report.notes))


def scored(model: nn.Module, data: Data, task: Task, what: str) -> float:
    """The score of a model in eval mode on the test set, by the task's metric."""
    size = len(data.test)  # type: ignore[arg-type]
    order = EpochBatches(size, min(TESTED, size), shuffle=False)
    score = task.score(data.shape)
    with torch.no_grad():
        for inputs, targets in tracked(batch_loader(data.test, order), what, len(order)):
            output: Tensor = model(inputs)
            score.add(output.numpy(), targets.numpy())
    return score.result()


def _float_checkpoint(source: str | Path | Checkpoint) -> Checkpoint:
    checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
    if not recipe_of(checkpoint.config, checkpoint.folder).is_float:
        raise CheckpointError(
            f"{checkpoint.folder} is a '{checkpoint.config.scheme}' checkpoint, quantized already; give the float one "
            "that it came from, or train one with scheme 'float'."
        )
    return checkpoint


def _refuse_taken(folder: Path, source: Path, overwrite: bool) -> None:
    check_output_folder(folder, "out")
    if folder.exists() and source.exists() and folder.samefile(source):
        raise UsageError(
            f"out '{folder}' is the folder of the float checkpoint, which would be lost; name another out."
        )
    if files_of(folder) and not overwrite:
        raise UsageError(
            f"{folder} holds a checkpoint. Replace it with overwrite=True (--overwrite), or choose another out (-o)."
        )


def _data(settings: PostTraining, config: Config) -> Data:
    if settings.data is None and config.data == "custom":
        raise UsageError("the checkpoint was trained on data of a program; give data, a name or a Data.")
    return load_data(settings.data or config.data, settings.data_path, **settings.data_options)


def _refuse_other_data(data: Data, config: Config) -> None:
    wanted = tuple(config.input_shape[1:])
    if data.shape != wanted:
        raise DataError(
            f"data set '{data.name}': inputs are {list(data.shape)}, the checkpoint's are {list(wanted)}; name the "
            "data that it was trained on, or such as has its shape."
        )


def _config(checkpoint: Checkpoint, recipe: Recipe, settings: PostTraining, record: Mapping[str, Any]) -> Config:
    """The description of the float checkpoint, with the recipe and how the model was quantized."""
    of_scheme = settings.recipe is None
    return replace(
        checkpoint.config,
        scheme=recipe.name,
        scheme_options=dict(settings.scheme_options) if of_scheme else {},
        recipe=() if of_scheme else tuple(recipe_data(recipe)),
        training={**checkpoint.config.training, "post_training": {**record, "from": checkpoint.sha256}},
        versions=versions(),
    )
