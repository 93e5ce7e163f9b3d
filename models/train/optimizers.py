"""Optimizers by name, and the groups of parameters that they learn by different rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from subbyte.models.train.run import Run

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Run], torch.optim.Optimizer]] = {
    "adamw": lambda groups, run: torch.optim.AdamW(groups, lr=run.learning_rate),
    "sgd": lambda groups, run: torch.optim.SGD(
        groups, lr=run.learning_rate, momentum=run.momentum, nesterov=run.momentum > 0
    ),
}


def parameter_groups(model: nn.Module, run: Run) -> list[dict[str, Any]]:
    """Two groups: weights of products, which decay, and all else."""
    weights: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_weight = name.endswith(("weight", "parametrizations.weight.original")) and parameter.dim() >= 2
        (weights if is_weight else rest).append(parameter)
    groups = [{"params": weights, "weight_decay": run.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
