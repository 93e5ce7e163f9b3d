"""Optimizers by name. Which parameters decay, and how fast each learns, is what the quantizers say.

To add an optimizer: add a row with the learning rate that it usually takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerEntry:
    """A learning rate where the run gives none; how it is made of groups, the rate of those without, and momentum."""

    learning_rate: float
    build: Callable[[Groups, float, float], torch.optim.Optimizer]


def _adamw(groups: Groups, rate: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate)


def _sgd(groups: Groups, rate: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


OPTIMIZERS = {"adamw": OptimizerEntry(2e-3, _adamw), "sgd": OptimizerEntry(0.05, _sgd)}
