"""What Lightning trains: a model with its task and loss, its optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subbyte.errors import TrainingError, UsageError
from subbyte.models.losses import LossOutput, Objective
from subbyte.models.losses.processes import from_all_processes
from subbyte.models.quant import parameter_groups
from subbyte.models.tasks import Batch
from subbyte.models.tasks.score import Array
from subbyte.models.train.batches import EpochBatches, batch_loader, seed_of, seed_torch, training_order
from subbyte.models.train.choice import HELD_OUT, TEST
from subbyte.models.train.divergence import origin
from subbyte.models.train.lightning import LightningModule
from subbyte.models.train.optimizers import OPTIMIZERS
from subbyte.models.train.parts import Parts, one_tensor
from subbyte.models.train.schedules import get_schedule

_PLACE = "subbyte"  # of what the learner keeps in the state of a run


class Learner(LightningModule):
    """A model, its data and its loss, as Lightning expects them."""

    def __init__(self, model: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.model, self.data, self.loss, self.run, self.task = model, parts.data, parts.loss, parts.run, parts.task
        self._teacher = [parts.teacher] if parts.teacher is not None else []  # in a list: no part of the state
        self._trained: list[Callable[[Tensor], Any]] = [torch.compile(model) if parts.run.compile else model]
        # The loss of tests is the task's, whatever is trained with: of one kind for all runs. In a list as the teacher.
        self._tested = [Objective(self.task.loss).eval()] if self.task.tested_by_loss else []
        self._part = TEST if parts.held_out is None else HELD_OUT
        self._tests: Dataset[Any] = self.data.test if parts.held_out is None else parts.held_out
        self._sums: dict[str, Tensor] = {}
        self._score = self.task.score(self.data.shape)
        self._next = (0, 0)  # epoch and batch that come next
        self.results: dict[str, float] = {}

    # ---- data ----

    def train_dataloader(self) -> Any:
        """Batches of the training set, from the one on that comes next."""
        assert self.run.batch_size is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        order = training_order(
            self.data.train, self.task, self.run.batch_size, seed=self.run.seed, rank=rank, world=world,
            parts=self.run.accumulate,
        )  # fmt: skip
        order.go_on(*self._next)
        return batch_loader(self.data.train, order, self.run.workers, numbered="ids" in self.loss.needs)

    def val_dataloader(self) -> Any:
        """Batches of what epochs are scored on."""
        assert self.run.batch_size is not None
        order = EpochBatches(
            len(self._tests),  # type: ignore[arg-type]
            4 * self.run.batch_size,
            shuffle=False,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return batch_loader(self._tests, order, self.run.workers)

    # ---- steps ----

    def on_fit_start(self) -> None:
        """Move the teacher beside the model."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Begin the sums of the epoch."""
        self._begin()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The loss of one batch; random numbers, such as those of dropout, depend on the seed and the batch alone."""
        per_epoch = int(self.trainer.num_training_batches)
        count = self.current_epoch * per_epoch + batch_idx
        self._next = (self.current_epoch, batch_idx + 1) if batch_idx + 1 < per_epoch else (self.current_epoch + 1, 0)
        given = Batch(batch[0], batch[1], batch[2] if len(batch) > 2 else None)
        rows = self._rows(given.inputs, (self.run.seed << 32) + count * 4096 + self.global_rank)
        seed_torch(seed_of(self.run.seed, count, self.global_rank), self.device)
        guide = None
        for teacher in self._teacher:
            with torch.no_grad():
                guide = self.task.outputs(teacher(rows), given)
        # Quantizers start in the first forward, by numbers that a compiler does not see.
        forward = self.model if count == 0 else self._trained[0]
        result = one_tensor(forward(rows))
        outputs = self.task.outputs(result, given).replaced(teacher=guide)
        output: LossOutput = self.loss(outputs, self.task.targets(given))
        if not output.value.isfinite():
            self._refuse(float(output.value.detach()), rows)
        self._count(output.value.detach(), given)
        if self.task.measured_in_training:
            self._score.add(_array(result), _array(given.target))
        return output.value

    def _rows(self, inputs: Tensor, seed: int) -> Tensor:
        """The rows of the network's batch: each sample once, or once for each of its views, augmented."""
        rows = inputs if self.task.views == 1 else inputs.repeat_interleave(self.task.views, dim=0)
        if self.run.augment and self.data.augment is not None:
            rows = self.data.augment(rows, torch.Generator().manual_seed(seed))
        return rows.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else rows

    def _refuse(self, loss: float, rows: Tensor) -> None:
        raise TrainingError(
            f"the loss is {loss} in step {self.global_step + 1} (epoch {self.current_epoch + 1}): "
            f"{origin(self.model, rows)}. The checkpoint and the state of the run are those before it. Lower the "
            "learning rate, clip the gradient (clip=1.0), or look at the data."
        )

    def on_validation_epoch_start(self) -> None:
        """Close the sums over the training batches and open those over what is tested."""
        self._close("train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score what the model in eval mode, an exact integer graph where it is quantized, gives; in float32."""
        given = Batch(*batch)
        with torch.autocast(self.device.type, enabled=False):
            result = one_tensor(self.model(given.inputs))
        self._score.add(_array(result), _array(given.target))
        for objective in self._tested:
            value: Tensor = objective(self.task.outputs(result, given), self.task.targets(given)).value
            self._count(value, given)

    def on_validation_epoch_end(self) -> None:
        """Join what all processes counted."""
        self._close(self._part)

    def _count(self, loss: Tensor, given: Batch) -> None:
        """Add the loss of a batch to the sums."""
        samples = torch.tensor(len(given.target), device=loss.device)
        for name, value in (("loss", loss * samples), ("count", samples)):
            total = self._sums.get(name)
            self._sums[name] = value.double() if total is None else total.to(value.device) + value

    def _begin(self) -> None:
        self._sums, self._score = {}, self.task.score(self.data.shape)

    def _close(self, part: str) -> None:
        """The mean loss and the score of a part over all processes, where they were counted."""
        if self._sums:
            sums = {name: float(self.trainer.strategy.reduce(v, reduce_op="sum")) for name, v in self._sums.items()}
            self.results[f"{part}_loss"] = sums["loss"] / sums["count"]
        if part == self._part or self.task.measured_in_training:
            whole = self.task.score(self.data.shape)
            for state in from_all_processes(self._score.state()):
                whole.merge(state)
            self.results[f"{part}_{self.task.metric.name}"] = whole.result()
        self._begin()

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
        score = [torch.from_numpy(array) for array in self._score.state()]
        checkpoint[_PLACE] = {"next": list(self._next), "sums": self._sums, "score": score}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up; raises ValueError where they are not there."""
        kept = checkpoint[_PLACE]
        epoch, batch = kept["next"]
        self._next, self._sums = (int(epoch), int(batch)), dict(kept["sums"])
        self._score = self.task.score(self.data.shape)
        self._score.merge([array.numpy() for array in kept["score"]])


def _array(tensor: Tensor) -> Array:
    """A tensor in NumPy; half precision, which NumPy has not all of, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
