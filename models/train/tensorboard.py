"""The rows of log.csv for TensorBoard: `tensorboard --logdir runs` compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subbyte.errors import MissingDependencyError
from subbyte.models.train.lightning import Callback, LightningModule, Trainer
from subbyte.models.train.log import EpochLog

FOLDER = "tensorboard"


class TensorBoardLog(Callback):
    """Writes each number of an epoch as a scalar; raises MissingDependencyError where tensorboard is not installed."""

    def __init__(self, folder: Path, epochs: EpochLog) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "tensorboard") from error
        self.folder, self.epochs = folder / FOLDER, epochs
        self._make: Any = SummaryWriter

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the epoch; a file for each epoch, so that a run that is stopped leaves whole files."""
        if not trainer.is_global_zero:
            return
        row = self.epochs.history[-1]
        writer = self._make(self.folder)
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.close()
