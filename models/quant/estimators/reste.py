"""Binary weights and activations: signs, with the ReSTE gradient, per-channel scales and learnable thresholds.

Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks
Training" (ReSTE), 2023; Rastegari et al., "XNOR-Net", 2016 (scale mean |w|, here per output channel); Liu et al.,
"ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions", 2020 (RSign's thresholds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import PerChannel
from subbyte.formats.binary import BINARY
from subbyte.models.quant import primitives
from subbyte.models.quant.first_batch import FirstBatchQuantizer
from subbyte.models.quant.quantizer import ActivationConfig, ActivationQuantizer, WeightConfig, WeightQuantizer
from subbyte.models.quant.register import register_activations, register_weights
from subbyte.models.quant.statistics import (
    SMALLEST_STEP,
    StepOf,
    mean_over_processes,
    mean_size,
    smallest_over_processes,
)

RESTE_CLIP = 1.5  # t of the paper: no gradient beyond
RESTE_FLAT = 0.1  # below, the gradient is constant: the power function's slope at 0 is infinite
RESTE_LAST_ORDER = 3.0

# ---- gradient ----


class ReSTESign(torch.autograd.Function):
    """sign(x) with sign(0) = +1; the gradient is that of sign(x) |x|^(1/o), kept finite near 0 and cut beyond 1.5.

    Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural
    Networks Training", 2023.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.order = order
        return x.clone().ge_(0).mul_(2.0).sub_(1.0)  # torch.where takes ten times as long

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return grads[0] * reste_slope(x, ctx.order), None


def reste_sign(x: Tensor, order: float) -> Tensor:
    """sign(x), with ReSTE's gradient of that order."""
    result: Tensor = ReSTESign.apply(x, order)  # type: ignore[no-untyped-call]
    return result


def reste_slope(x: Tensor, order: float) -> Tensor:
    """(1/o) |x|^((1-o)/o) for 0.1 < |x| <= 1.5; 0.1^(1/o) / 0.1 for |x| <= 0.1; 0 beyond 1.5."""
    size = x.abs()
    slope = size.clamp_min(RESTE_FLAT).pow_((1 - order) / order).div_(order)
    slope.masked_fill_(size <= RESTE_FLAT, RESTE_FLAT ** (1 / order) / RESTE_FLAT)
    return slope.mul_(size.le_(RESTE_CLIP))


def reste_order(progress: float) -> float:
    """o = 1 + (1 - cos(pi r / 2)) * 2: from 1 (straight-through) at the start, r = 0, to 3 at the end, r = 1."""
    return 1 + (1 - math.cos(math.pi * progress / 2)) * (RESTE_LAST_ORDER - 1)


# ---- weights ----


@dataclass(frozen=True)
class Sign:
    """Weights sign(w) x mean |w| of their output channel; ReSTE gradient through the sign, none through the mean."""

    @property
    def format_name(self) -> str:
        return BINARY.name

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        return SignWeight(weight)


class SignWeight(WeightQuantizer):
    """Signs of a weight; the order of ReSTE's slope goes with the progress of training."""

    format = BINARY
    granularity = PerChannel(0)

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.order = reste_order(0.0)
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        return mean_size(w.detach(), self.granularity).clamp_min(SMALLEST_STEP)

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return torch.where(w >= 0, 1.0, -1.0)

    def fake_quantize(self, w: Tensor) -> Tensor:
        """sign(w) x scale; d/dw = scale x ReSTE's slope at w, the scale being held constant."""
        with torch.no_grad():
            scale = self.expand(self.scale(w), w)
        return reste_sign(w, self.order) * scale

    def set_progress(self, fraction: float) -> None:
        self.order = reste_order(fraction)


# ---- activations ----


@dataclass(frozen=True)
class Threshold:
    """Activations +1 where x >= threshold, else -1; a learnable threshold for each channel (ReActNet's RSign)."""

    @property
    def format_name(self) -> str:
        return BINARY.name

    def activation_quantizer(self, layer: nn.Module) -> ActivationQuantizer:
        channels, axes = _channels_and_axes(layer)
        return ThresholdActivation(channels, axes)


def _channels_and_axes(layer: nn.Module) -> tuple[int, int]:
    """Input channels of a layer, and the axes that follow the channel axis."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, 0
    for kind, axes in ((nn.Conv1d, 1), (nn.Conv2d, 2)):
        if isinstance(layer, kind):
            return int(layer.in_channels), axes
    raise QuantizationError(f"a {type(layer).__name__} has no channels that a threshold could go with")


class ThresholdActivation(FirstBatchQuantizer):
    """Signs of an activation tensor; `threshold` is a parameter [C], [1, C, 1] or [1, C, 1, 1].

    It starts at 0 as in ReActNet; but where the first batch has no negative value (after a ReLU), where 0 would make
    every sign +1, it starts at each channel's mean.
    """

    format = BINARY
    pad_value = 1.0

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        shape = (1, channels, *[1] * axes) if axes else (channels,)
        self.threshold = nn.Parameter(torch.zeros(shape))
        self.order = reste_order(0.0)

    def rows(self, x: Tensor) -> Tensor:
        return x.movedim(1 if self.threshold.dim() > 1 else -1, 0).flatten(1)

    def initialize(self, rows: Tensor, step_of: StepOf | None = None) -> None:
        """Choose the first thresholds."""
        means = mean_over_processes(rows.mean(dim=1)).reshape(self.threshold.shape)
        positive = float(smallest_over_processes(rows.min())) >= 0
        self.threshold.copy_(means if positive else torch.zeros_like(means))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.see(x)
        return primitives.binarize(x, self.threshold), None

    def scales(self) -> Tensor:
        return torch.ones((), device=self.threshold.device)

    def fake_quantize(self, x: Tensor) -> Tensor:
        self.see(x)
        return reste_sign(x - self.threshold, self.order)

    def set_progress(self, fraction: float) -> None:
        self.order = reste_order(fraction)


@register_weights("binary")
def binary_weights() -> WeightConfig:
    """signs times mean |w| per channel, ReSTE gradient"""
    return Sign()


@register_activations("binary")
def binary_activations() -> ActivationConfig:
    """signs beyond a learned threshold of each channel (ReActNet), ReSTE gradient"""
    return Threshold()
