"""What Lightning trains: a classifier with its loss, its optimizer and schedule."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.data import Data
from subbyte.models.losses import LossOutput, Objective, Outputs, Targets
from subbyte.models.quant import set_progress
from subbyte.models.train.batches import batch_loader
from subbyte.models.train.optimizers import OPTIMIZERS, parameter_groups
from subbyte.models.train.run import Run
from subbyte.models.train.schedules import warmup_cosine


class Learner(LightningModule):
    """A model, its data and its loss, as Lightning expects them."""

    def __init__(self, model: nn.Module, data: Data, loss: Objective, run: Run, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model, self.data, self.loss, self.run = model, data, loss, run
        self._teacher = [teacher] if teacher is not None else []  # in a list: no part of the state or of the optimizer
        self._sums: dict[str, Tensor] = {}
        self.results: dict[str, float] = {}

    # ---- data ----

    def _loader(self, part: str, batch_size: int) -> Any:
        training = part == "train"
        return batch_loader(
            self.data.train if training else self.data.test,
            batch_size,
            shuffle=training,
            seed=self.run.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            workers=self.run.workers,
        )

    def train_dataloader(self) -> Any:
        """Batches of the training set."""
        length = len(self.data.train)  # type: ignore[arg-type]
        return self._loader("train", min(self.run.batch_size, length - length % self.trainer.world_size))

    def val_dataloader(self) -> Any:
        """Batches of the test set."""
        return self._loader("test", 4 * self.run.batch_size)

    # ---- steps ----

    def on_fit_start(self) -> None:
        """Move the teacher beside the model."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Make random layers, such as dropout, depend on the seed and the epoch alone."""
        torch.manual_seed((self.run.seed * 1_000_003 + self.current_epoch) * 997 + self.global_rank)
        self._sums = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        if self.run.augment and self.data.augment is not None:
            generator = torch.Generator().manual_seed(
                (self.run.seed << 32) + self.global_step * 4096 + self.global_rank
            )
            images = self.data.augment(images, generator)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        set_progress(self.model, self.global_step / max(1, self.total_steps))
        guide = None
        for teacher in self._teacher:
            with torch.no_grad():
                guide = Outputs(teacher(images))
        logits = _logits(self.model(images))
        output: LossOutput = self.loss(Outputs(logits, teacher=guide), Targets(labels))
        self._add("loss", output.value.detach() * len(labels))
        self._add("correct", (logits.detach().argmax(-1) == labels).sum())
        self._add("count", torch.tensor(len(labels), device=labels.device))
        return output.value

    def on_validation_epoch_start(self) -> None:
        """Close the sums over the training batches and open those over the test set."""
        self._close("train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count what the model in eval mode, an exact integer graph where it is quantized, gets right."""
        images, labels = batch
        logits = _logits(self.model(images))
        self._add("loss", nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self._add("correct", (logits.argmax(-1) == labels).sum())
        self._add("count", torch.tensor(len(labels), device=labels.device))

    def on_validation_epoch_end(self) -> None:
        """Sum the counts of all processes."""
        self._close("test")

    def _add(self, name: str, value: Tensor) -> None:
        total = self._sums.get(name)
        self._sums[name] = value.double() if total is None else total + value

    def _close(self, part: str) -> None:
        if self._sums:
            sums = {name: float(self.trainer.strategy.reduce(v, reduce_op="sum")) for name, v in self._sums.items()}
            self.results[f"{part}_loss"] = sums["loss"] / sums["count"]
            self.results[f"{part}_accuracy"] = sums["correct"] / sums["count"]
        self._sums = {}

    # ---- optimizer ----

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        """The optimizer of the run, with warm-up and a cosine."""
        groups = parameter_groups(self.model, self.run)
        if not groups:
            raise UsageError("the model has no parameters to train.")
        groups += self.loss.parameter_groups()
        optimizer = OPTIMIZERS[self.run.optimizer](groups, self.run)
        steps = self.total_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps, self.run.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _logits(output: object) -> Tensor:
    """What the model gave, where that is one tensor; raises UsageError."""
    if isinstance(output, Tensor):
        return output
    raise UsageError(
        f"the model's forward returns a {type(output).__name__}, train learns from logits [N, classes] alone: train it "
        "with a loop of your own around quantize(), then export the model"
    )
