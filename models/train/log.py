"""The record of a run: after every epoch a row in log.csv, the checkpoint, and the state to resume from."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from subbyte.files.output import write_file
from subbyte.models.checkpoint import Config, save_checkpoint
from subbyte.models.checkpoint_files import LOG, STATE
from subbyte.models.train.learner import Learner


class EpochReport(Callback):
    """After every epoch: a line on the screen, a row in log.csv, the checkpoint, and the state to resume from."""

    def __init__(self, folder: Path, config: Config, progress: bool) -> None:
        self.folder, self.config, self.progress = folder, config, progress
        self.history: list[dict[str, float]] = []
        self._started = 0.0

    @property
    def begun(self) -> bool:
        """Whether an epoch of this run has begun."""
        return self._started > 0

    def state_dict(self) -> dict[str, Any]:
        """What is kept to resume."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = list(state_dict["history"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError where what an optimizer took up of a run is not of the shape of its parameter."""
        for optimizer in trainer.optimizers:
            for parameter, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} of a parameter {list(parameter.shape)} is {list(value.shape)}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch."""
        assert isinstance(pl_module, Learner)
        results = pl_module.results
        row = {
            "epoch": float(trainer.current_epoch + 1),
            **{name: results[name] for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")},
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": time.perf_counter() - self._started,
        }
        self.history.append(row)
        if trainer.is_global_zero:
            self._write(pl_module.model, row)
        trainer.save_checkpoint(self.folder / STATE, weights_only=False)

    def _write(self, model: nn.Module, row: dict[str, float]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row))
        writer.writeheader()
        writer.writerows(self.history)
        write_file(self.folder / LOG, text.getvalue().encode())
        metrics = {"accuracy": row["test_accuracy"], "loss": row["test_loss"], "epochs": row["epoch"]}
        save_checkpoint(self.folder, model, self.config, metrics)
