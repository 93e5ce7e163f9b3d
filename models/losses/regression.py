"""Losses for real targets: a prediction [M] and a value [M]."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import loss
from subbyte.models.options import Positive


@loss(
    "huber",
    needs=("prediction", "value"),
    source="Huber, Robust Estimation of a Location Parameter, 1964",
    good_for=("outliers",),
)
def huber(outputs: Outputs, targets: Targets, delta: Positive = 1.0) -> Tensor:
    """r^2 / 2 for an error |r| <= delta, linear beyond: delta (|r| - delta / 2)"""
    size = (outputs.prediction - targets.value).abs()
    return torch.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


@loss(
    "squared-error",
    alias="mse",
    needs=("prediction", "value"),
    source="Gauss, Theoria combinationis observationum erroribus minimis obnoxiae, 1823",
)
def squared_error(outputs: Outputs, targets: Targets) -> Tensor:
    """r^2 for an error r"""
    return (outputs.prediction - targets.value) ** 2


@loss(
    "absolute-error",
    alias="mae",
    needs=("prediction", "value"),
    source="Laplace, Essai philosophique sur les probabilites, 1814",
    good_for=("outliers",),
)
def absolute_error(outputs: Outputs, targets: Targets) -> Tensor:
    """|r| for an error r"""
    return (outputs.prediction - targets.value).abs()
