"""When the state that a run resumes from is saved: after every epoch, every N steps, and at Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from subbyte.files.output import write_file
from subbyte.models.checkpoint_files import STATE
from subbyte.models.train.divergence import refuse_not_finite
from subbyte.models.train.interrupt import Interrupt
from subbyte.models.train.learner import Learner
from subbyte.models.train.lightning import Callback, LightningModule, Trainer
from subbyte.models.train.run import CONFIGURATION, Run


class StateSaver(Callback):
    """Saves the state and `run.yaml`, between steps alone; stops the run where Ctrl-C asked for it.

    It is the last of the callbacks, so that the state has what the others did.
    """

    def __init__(self, folder: Path, run: Run, interrupt: Interrupt) -> None:
        self.folder, self.run, self.interrupt = folder, run, interrupt
        self.begun = False  # whether a step of this run has begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError where what an optimizer took up of a run is not of the shape of its parameter."""
        for optimizer in trainer.optimizers:
            for parameter, kept in optimizer.state.items():
                for name, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} of a parameter {list(parameter.shape)} is {list(value.shape)}")
        self.interrupt.deferring = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """From here on errors are not those of taking up a run."""
        self.begun = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, but not within the parts of a step, nor at the end of an epoch, which follows."""
        stop = trainer.strategy.reduce_boolean_decision(self.interrupt.asked, all=False)
        last = batch_idx + 1 == trainer.num_training_batches
        if last or (batch_idx + 1) % self.run.accumulate:
            return
        every = self.run.save_every
        if stop or (every is not None and trainer.global_step % every == 0):
            self._save(trainer, pl_module)
        if stop:
            self.interrupt.stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer, pl_module)
        if trainer.strategy.reduce_boolean_decision(self.interrupt.asked, all=False):
            self.interrupt.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ctrl-C stops at once again."""
        self.interrupt.deferring = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ctrl-C stops at once again."""
        self.interrupt.deferring = False

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        refuse_not_finite(pl_module.model, f"after step {trainer.global_step}")
        if trainer.is_global_zero:
            write_file(self.folder / CONFIGURATION, self.run.as_text().encode())
        trainer.save_checkpoint(self.folder / STATE, weights_only=False)
