"""The progress of a run on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from subbyte.models.train.choice import TEST, scored, scored_on
from subbyte.models.train.lightning import Callback, LightningModule, Trainer
from subbyte.models.train.log import EpochLog


class ProgressBar(Callback):
    """A bar that moves with the batches, and a line with loss and score for every epoch."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar; on a terminal only."""
        if not trainer.is_global_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        self._bar = Progress(*columns, console=self.console, transient=True, disable=hidden)
        self._bar.start()
        self._task = self._bar.add_task("training", total=int(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            label = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.update(self._task, completed=trainer.global_step, description=label)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch."""
        report = next((c for c in trainer.callbacks if isinstance(c, EpochLog)), None)  # type: ignore[attr-defined]
        if self._bar is None or report is None:
            return
        row, metric = report.history[-1], report.parts.task.metric
        part = scored_on(row, metric)
        loss = f"{part} loss {row[f'{part}_loss']:.4f}  " if f"{part}_loss" in row else ""
        title = metric.title if part == TEST else f"{part} {metric.title}"
        self._bar.console.print(
            f"epoch {row['epoch']:.0f}/{trainer.max_epochs}  loss {row['train_loss']:.4f}  {loss}"
            f"{title} {metric.words(scored(row, metric))}  {row['seconds']:.1f} s"
            f"{_left(report.history, trainer.max_epochs)}",
            highlight=False,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away after an error, too."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _left(history: Sequence[Mapping[str, float]], epochs: int | None) -> str:
    """The time left, by the median of the epochs so far."""
    rest = (epochs or 0) - int(history[-1]["epoch"])
    seconds = round(rest * median(row["seconds"] for row in history))
    return f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left" if rest > 0 else ""
