"""What Lightning trains: a classifier with its loss, its optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from subbyte.errors import TrainingError, UsageError
from subbyte.models.losses import LossOutput, Outputs, Targets
from subbyte.models.quant import parameter_groups
from subbyte.models.train.batches import EpochBatches, batch_loader, seed_of, seed_torch
from subbyte.models.train.divergence import origin
from subbyte.models.train.optimizers import OPTIMIZERS
from subbyte.models.train.parts import Parts
from subbyte.models.train.schedules import get_schedule

_PLACE = "subbyte"  # of what the learner keeps in the state of a run


class Learner(LightningModule):
    """A model, its data and its loss, as Lightning expects them."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.model, self.data, self.loss, self.run = model, parts.data, parts.loss, parts.run
        self._teacher = [parts.teacher] if parts.teacher is not None else []  # in a list: no part of the state
        self._trained: list[Callable[[Tensor], Any]] = [torch.compile(model) if parts.run.compile else model]
        self._sums: dict[str, Tensor] = {}
        self._next = (0, 0)  # epoch and batch that come next
        self.results: dict[str, float] = {}

    # ---- data ----

    def _order(self, length: int, batch_size: int, parts: int, *, shuffle: bool) -> EpochBatches:
        trainer, seed = self.trainer, self.run.seed
        rank, world = trainer.global_rank, trainer.world_size
        return EpochBatches(length, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world, parts=parts)

    def train_dataloader(self) -> Any:
        """Batches of the training set, from the one on that comes next."""
        assert self.run.batch_size is not None
        length, share = len(self.data.train), self.trainer.world_size * self.run.accumulate  # type: ignore[arg-type]
        batch_size = min(self.run.batch_size, length - length % share)
        order = self._order(length, batch_size, self.run.accumulate, shuffle=True)
        order.go_on(*self._next)
        return batch_loader(self.data.train, order, self.run.workers, numbered="ids" in self.loss.needs)

    def val_dataloader(self) -> Any:
        """Batches of the test set."""
        assert self.run.batch_size is not None
        order = self._order(len(self.data.test), 4 * self.run.batch_size, 1, shuffle=False)  # type: ignore[arg-type]
        return batch_loader(self.data.test, order, self.run.workers)

    # ---- steps ----

    def on_fit_start(self) -> None:
        """Move the teacher beside the model."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Begin the sums of the epoch."""
        self._sums = {}

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The loss of one batch; random numbers, such as those of dropout, depend on the seed and the batch alone."""
        per_epoch = int(self.trainer.num_training_batches)
        count = self.current_epoch * per_epoch + batch_idx
        self._next = (self.current_epoch, batch_idx + 1) if batch_idx + 1 < per_epoch else (self.current_epoch + 1, 0)
        images, labels, *numbers = batch
        if self.run.augment and self.data.augment is not None:
            seed = (self.run.seed << 32) + count * 4096 + self.global_rank
            images = self.data.augment(images, torch.Generator().manual_seed(seed))
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        seed_torch(seed_of(self.run.seed, count, self.global_rank), self.device)
        guide = None
        for teacher in self._teacher:
            with torch.no_grad():
                guide = Outputs(teacher(images))
        # Quantizers start in the first forward, by numbers that a compiler does not see.
        forward = self.model if count == 0 else self._trained[0]
        logits = _logits(forward(images))
        targets = Targets(labels, ids=numbers[0] if numbers else None)
        output: LossOutput = self.loss(Outputs(logits, teacher=guide), targets)
        if not output.value.isfinite():
            self._refuse(float(output.value.detach()), images)
        self._add("loss", output.value.detach() * len(labels))
        self._add("correct", (logits.detach().argmax(-1) == labels).sum())
        self._add("count", torch.tensor(len(labels), device=labels.device))
        return output.value

    def _refuse(self, loss: float, images: Tensor) -> None:
        raise TrainingError(
            f"the loss is {loss} in step {self.global_step + 1} (epoch {self.current_epoch + 1}): "
            f"{origin(self.model, images)}. The checkpoint and the state of the run are those before it. Lower the "
            "learning rate, clip the gradient (clip=1.0), or look at the data."
        )

    def on_validation_epoch_start(self) -> None:
        """Close the sums over the training batches and open those over the test set."""
        self._close("train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count what the model in eval mode, an exact integer graph where it is quantized, gets right; in float32."""
        images, labels = batch
        with torch.autocast(self.device.type, enabled=False):
            logits = _logits(self.model(images))
        self._add("loss", nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self._add("correct", (logits.argmax(-1) == labels).sum())
        self._add("count", torch.tensor(len(labels), device=labels.device))

    def on_validation_epoch_end(self) -> None:
        """Sum the counts of all processes."""
        self._close("test")

    def _add(self, name: str, value: Tensor) -> None:
        total = self._sums.get(name)
        self._sums[name] = value.double() if total is None else total.to(value.device) + value

    def _close(self, part: str) -> None:
        if self._sums:
            sums = {name: float(self.trainer.strategy.reduce(v, reduce_op="sum")) for name, v in self._sums.items()}
            self.results[f"{part}_loss"] = sums["loss"] / sums["count"]
            self.results[f"{part}_accuracy"] = sums["correct"] / sums["count"]
        self._sums = {}

    # ---- optimizer ----

    def configure_optimizers(self) -> Any:
        """The optimizer of the run, with its schedule."""
        assert self.run.learning_rate is not None
        groups = parameter_groups(self.model, learning_rate=self.run.learning_rate, weight_decay=self.run.weight_decay)
        if not groups:
            raise UsageError("the model has no parameters to train.")
        groups += self.loss.parameter_groups()
        optimizer = OPTIMIZERS[self.run.optimizer].build(groups, self.run.learning_rate, self.run.momentum)
        steps, schedule = (
            int(self.trainer.estimated_stepping_batches),
            get_schedule(self.run.schedule, self.run.schedule_options),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.at(step, steps, self.run.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- state ----

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which batch comes next and the sums up to it."""
        checkpoint[_PLACE] = {"next": list(self._next), "sums": self._sums}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up; raises ValueError where they are not there."""
        kept = checkpoint[_PLACE]
        epoch, batch = kept["next"]
        self._next, self._sums = (int(epoch), int(batch)), dict(kept["sums"])


def _logits(output: object) -> Tensor:
    """What the model gave, where that is one tensor; raises UsageError."""
    if isinstance(output, Tensor):
        return output
    raise UsageError(
        f"the model's forward returns a {type(output).__name__}, train learns from logits [N, classes] alone: train it "
        "with a loop of your own around quantize(), then export the model"
    )
