"""The record of a run: after every epoch a row in log.csv and the checkpoint."""

from __future__ import annotations

import csv
import io
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from subbyte.files.output import write_file
from subbyte.models.checkpoint import save_checkpoint
from subbyte.models.checkpoint_files import LOG
from subbyte.models.train.averaging import Average
from subbyte.models.train.callbacks import QuantizationCallback
from subbyte.models.train.choice import best_epoch, is_over, metrics_of
from subbyte.models.train.divergence import refuse_not_finite
from subbyte.models.train.learner import Learner
from subbyte.models.train.lightning import Callback, LightningModule, Trainer
from subbyte.models.train.parts import Parts


class EpochLog(Callback):
    """Records epochs, saves the model that is the result so far, and stops when the run's patience ends."""

    def __init__(self, folder: Path, parts: Parts, quantization: QuantizationCallback, average: Average | None) -> None:
        self.folder, self.parts, self.quantization, self.average = folder, parts, quantization, average
        self.history: list[dict[str, float]] = []
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What is kept to resume."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.history = list(state_dict["history"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a run that is resumed may be over."""
        self._started = time.perf_counter()
        trainer.should_stop = trainer.should_stop or self._is_over()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch."""
        assert isinstance(pl_module, Learner)
        refuse_not_finite(pl_module.model, f"after epoch {trainer.current_epoch + 1}")
        row = {
            "epoch": float(trainer.current_epoch + 1),
            **pl_module.results,
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            **self.quantization.reported,
            "seconds": time.perf_counter() - self._started,
        }
        self.history.append(row)
        run, metric = self.parts.run, self.parts.task.metric
        trainer.should_stop = trainer.should_stop or self._is_over()
        if trainer.is_global_zero:
            self._write_rows()
            if run.keep == "last" or best_epoch(self.history, metric) == len(self.history) - 1:
                with self.average.applied() if self.average else nullcontext():
                    save_checkpoint(self.folder, pl_module.model, self.parts.config, metrics_of(row, metric))

    def _is_over(self) -> bool:
        return is_over(self.history, self.parts.task.metric, self.parts.run.patience)

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.history[-1]))
        writer.writeheader()
        writer.writerows(self.history)
        write_file(self.folder / LOG, text.getvalue().encode())
