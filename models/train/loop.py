"""`train`: one call from a data set to a checkpoint of a network below eight bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from subbyte.errors import CheckpointError, MissingDependencyError, SubbyteError, UsageError, one_line
from subbyte.files.output import make_folder
from subbyte.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_file
from subbyte.models.checkpoint_files import LOG, STATE
from subbyte.models.quant import set_progress
from subbyte.models.tasks import Metric
from subbyte.models.train.choice import best_epoch, metrics_of, scored
from subbyte.models.train.folder import prepare, read_log
from subbyte.models.train.held_out import final_score
from subbyte.models.train.interrupt import interruptible
from subbyte.models.train.parts import Parts, asked, build, gather
from subbyte.models.train.run import Run, differences

if TYPE_CHECKING:
    from subbyte.models.train.interrupt import Interrupt
    from subbyte.models.train.saving import StateSaver


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint is, its score on the test set by the task's metric, and a row of numbers for every epoch."""

    folder: Path
    score: float
    metric: Metric
    history: tuple[dict[str, float], ...]

    @property
    def accuracy(self) -> float:
        """The score, 0 to 1, where the task's metric is an accuracy; raises UsageError for another."""
        if self.metric.name != "accuracy":
            raise UsageError(f"the task is scored by {self.metric.title}, not by accuracy: read `score`.")
        return self.score

    def load(self, model: nn.Module | None = None) -> Checkpoint:
        """The checkpoint with its model; `model` as for `load_checkpoint`."""
        return load_checkpoint(self.folder, model)


def train(
    run: Run | str | nn.Module | None = None,
    /,
    *more: Any,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    **fields: Any,
) -> TrainResult:
    """Train a model with quantization in the loop and write a checkpoint to the folder `out`.

        train("resnet8", data="digits", scheme="ternary", epochs=15, out="runs/t")
        train(Run(scheme="ternary", epochs=15))

    The keywords are the fields of `Run`; data, scheme, epochs and out may follow the model by position. Given a `Run`,
    they replace its fields. `model` may also be an `nn.Module`, which is quantized in place, `teacher` a module, `data`
    a `Data`, or a pair (train, test) of torch Datasets of (float32 image [C, H, W], label). `callbacks`: Lightning's.

    Each epoch ends with the score on the test set by the task's metric, a row in log.csv, a checkpoint, and the state
    that `resume=True` goes on from; Ctrl-C saves the state, too. The result is the model of the last epoch, or with
    `keep="best"` that of the best: then, and with `patience` or `held_out`, epochs are scored on a part of the training
    set that is held out, and the test set once, at the end. A folder that holds a checkpoint is only written to with
    `resume` or `overwrite`.

    Raises `UsageError` for names and options that do not fit and for an `out` that is taken, `DataError` for data,
    `CheckpointError` for `init`, `teacher`, or a run to resume that was another, `TrainingError` for a loss or weights
    that are not finite.
    """
    try:
        import subbyte.models.train.lightning  # noqa: F401  (a missing one is found here, by its name)
    except ImportError as error:
        raise MissingDependencyError("lightning", "train") from error
    parts = gather(*asked(run, more, fields))
    folder, before = prepare(parts.run, resume, overwrite)
    if before is not None and progress:
        for says in differences(before, parts.run).values():
            print(f"{folder}: resumed, {says}", file=sys.stderr)
    with torch.random.fork_rng(), interruptible() as interrupt:
        torch.manual_seed(parts.run.seed)
        module = build(parts)
        _lay_out(module, torch.channels_last)  # convolutions train about a third faster so, on CPUs too
        first = _fit(module, parts, folder, before is not None, interrupt, (progress, callbacks))
        module.load_state_dict(load_file(weights_file(folder)))
        set_progress(module, 1.0)
        _lay_out(module.to("cpu").eval(), torch.contiguous_format)
    history, metric = read_log(folder / LOG), parts.task.metric
    chosen = history[best_epoch(history, metric)] if parts.run.keep == "best" else history[-1]
    if parts.held_out is None:
        return TrainResult(folder, scored(chosen, metric), metric, history)
    assert parts.run.batch_size is not None
    score = final_score(module, parts.data, parts.task, 4 * parts.run.batch_size)
    if first:
        save_checkpoint(folder, module, parts.config, {**metrics_of(chosen, metric), metric.name: score})
    return TrainResult(folder, score, metric, history)


def _fit(
    module: nn.Module,
    parts: Parts,
    folder: Path,
    going_on: bool,
    interrupt: Interrupt,
    shown: tuple[bool, Sequence[Any]],
) -> bool:
    """Let Lightning train the module, with our callbacks and then the caller's; whether this process is the first."""
    from subbyte.models.train.averaging import Average
    from subbyte.models.train.callbacks import QuantizationCallback
    from subbyte.models.train.learner import Learner
    from subbyte.models.train.log import EpochLog
    from subbyte.models.train.progress import ProgressBar
    from subbyte.models.train.saving import StateSaver
    from subbyte.models.train.tensorboard import TensorBoardLog
    from subbyte.models.train.trainer import make_trainer, quiet_lightning

    run, state = parts.run, folder / STATE
    average = None if run.ema is None else Average(module, run.ema)
    quantization = QuantizationCallback(freeze=run.freeze)
    log, saver = EpochLog(folder, parts, quantization, average), StateSaver(folder, run, interrupt)
    bars = [ProgressBar()] if shown[0] else []
    boards = [TensorBoardLog(folder, log)] if run.tensorboard else []
    ours = [average] if average is not None else []
    with quiet_lightning():
        trainer = make_trainer(run, folder, [quantization, *ours, log, *bars, *boards, *shown[1], saver])
        if trainer.is_global_zero:
            make_folder(folder)
            if not going_on:
                state.unlink(missing_ok=True)  # else a run stopped in its first epoch would resume the one it replaces
        with parts.loss.attached(module, parts.teacher), _blaming(state if going_on else None, saver):
            trainer.fit(Learner(module, parts), ckpt_path=str(state) if going_on else None)
    return trainer.is_global_zero


@contextmanager
def _blaming(state: Path | None, saver: StateSaver) -> Iterator[None]:
    """Raise CheckpointError for what Lightning and torch raise while they take up a run, before it goes on."""
    try:
        yield
    except SubbyteError:
        raise
    except Exception as error:
        if state is None or saver.begun:
            raise
        raise CheckpointError(
            f"{state}: cannot resume from it ({type(error).__name__}: {one_line(error)}): it is of another model or "
            "damaged; train again without resume."
        ) from error


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Store the parameters and buffers with four axes in this memory format."""
    cast(Any, module).to(memory_format=memory_format)  # torch's overloads leave it out
