"""What Lightning trains: a classifier with its loss, its optimizer and schedule, and the report of every epoch."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.files.output import write_file
from subbyte.models.batches import batch_loader
from subbyte.models.checkpoint import Config, save_checkpoint
from subbyte.models.checkpoint_files import STATE
from subbyte.models.data import Data
from subbyte.models.losses import Loss, Outputs, Targets
from subbyte.models.quant import set_progress

LOG = "log.csv"


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    optimizer: str = "adamw"
    warmup: float = 0.05  # share of all steps in which the learning rate grows from 0
    momentum: float = 0.9  # of sgd
    seed: int = 0
    workers: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got '{self.optimizer}'.")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is a share of all steps in [0, 1), got {self.warmup}.")


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Recipe], torch.optim.Optimizer]] = {
    "adamw": lambda groups, recipe: torch.optim.AdamW(groups, lr=recipe.learning_rate),
    "sgd": lambda groups, recipe: torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
    ),
}


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Two groups: weights of products, which decay, and all else."""
    weights: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_weight = name.endswith(("weight", "parametrizations.weight.original")) and parameter.dim() >= 2
        (weights if is_weight else rest).append(parameter)
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rate at `step` of `steps`: linear growth, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


class Learner(LightningModule):
    """A model, its data and its loss, as Lightning expects them."""

    def __init__(self, model: nn.Module, data: Data, loss: Loss, recipe: Recipe, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model, self.data, self.loss, self.recipe = model, data, loss, recipe
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
            seed=self.recipe.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            workers=self.recipe.workers,
        )

    def train_dataloader(self) -> Any:
        """Batches of the training set."""
        length = len(self.data.train)  # type: ignore[arg-type]
        return self._loader("train", min(self.recipe.batch_size, length - length % self.trainer.world_size))

    def val_dataloader(self) -> Any:
        """Batches of the test set."""
        return self._loader("test", 4 * self.recipe.batch_size)

    # ---- steps ----

    def on_fit_start(self) -> None:
        """Move the teacher beside the model."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        """Make random layers, such as dropout, depend on the seed and the epoch alone."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.current_epoch) * 997 + self.global_rank)
        self._sums = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        if self.recipe.augment and self.data.augment is not None:
            generator = torch.Generator().manual_seed(
                (self.recipe.seed << 32) + self.global_step * 4096 + self.global_rank
            )
            images = self.data.augment(images, generator)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        set_progress(self.model, self.global_step / max(1, self.total_steps))
        guide = None
        for teacher in self._teacher:
            with torch.no_grad():
                guide = Outputs(logits=teacher(images))
        logits = _logits(self.model(images))
        output = self.loss(Outputs(logits=logits, teacher=guide), Targets(label=labels), step=self.global_step)
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
        """The optimizer of the recipe, with warm-up and a cosine."""
        groups = parameter_groups(self.model, self.recipe)
        if not groups:
            raise UsageError("the model has no parameters to train.")
        optimizer = OPTIMIZERS[self.recipe.optimizer](groups, self.recipe)
        steps = self.total_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps, self.recipe.warmup)
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


class ProgressBar(Callback):
    """A bar that moves with the batches, and a line with loss and accuracy for every epoch."""

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
        report = next((c for c in trainer.callbacks if isinstance(c, EpochReport)), None)  # type: ignore[attr-defined]
        if self._bar is None or report is None:
            return
        row = report.history[-1]
        self._bar.console.print(
            f"epoch {row['epoch']:.0f}/{trainer.max_epochs}  loss {row['train_loss']:.4f}  "
            f"test loss {row['test_loss']:.4f}  accuracy {100 * row['test_accuracy']:.2f}%  {row['seconds']:.1f} s",
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
