"""Optimizers by name. Which parameters decay, and how fast each learns, is what the quantizers say.

To add an optimizer: add a row with the learning rate that it usually takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from subbyte.models.train.run import Run

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerEntry:
    """A learning rate where the run gives none; how it is made of groups, the rate of groups that have none."""

    learning_rate: float
    build: Callable[[Groups, float, Run], torch.optim.Optimizer]


def _adamw(groups: Groups, rate: float, run: Run) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate)


def _sgd(groups: Groups, rate: float, run: Run) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=rate, momentum=run.momentum, nesterov=run.momentum > 0)


OPTIMIZERS = {"adamw": OptimizerEntry(2e-3, _adamw), "sgd": OptimizerEntry(0.05, _sgd)}
