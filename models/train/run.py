"""`Run`: the configuration of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from subbyte.errors import UsageError
from subbyte.models.train.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Run:
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
