"""Gradients through rounding: straight-through, learned step size (LSQ), and ReSTE for signs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SMALLEST_STEP = 1e-5  # a step or scale is never smaller, so that x / step stays finite

RESTE_CLIP = 1.5  # t of the paper: no gradient beyond
RESTE_FLAT = 0.1  # below, the gradient is constant: the power function's slope at 0 is infinite
RESTE_LAST_ORDER = 3.0


class StraightThrough(torch.autograd.Function):
    """Gives `value` for `x`; the gradient passes to `x` as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return grads[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with d value / d x = 1."""
    result: Tensor = StraightThrough.apply(x, value)  # type: ignore[no-untyped-call]
    return result


class LearnedStepFunction(torch.autograd.Function):
    """clip(round(x / s), low, high) * s. Esser et al., "Learned Step Size Quantization", 2020.

    With v = x / s: d/dx = 1 where low <= v <= high, else 0; d/ds = low or high where v is beyond them, else round(v)
    - v, times gamma. The step that comes in is positive and has x's shape (or broadcasts).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor, gamma: Tensor) -> Tensor:
        scaled = x * (1.0 / step)
        codes = torch.clamp(torch.round(scaled), low, high)
        ctx.save_for_backward(scaled, low, high, gamma)
        ctx.step_shape = step.shape
        return codes * step

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        scaled, low, high, gamma = ctx.saved_tensors
        grad = grads[0]
        inside = (scaled >= low) & (scaled <= high)
        slope = torch.where(inside, torch.round(scaled) - scaled, torch.clamp(scaled, low, high))
        return grad * inside, (grad * slope * gamma).sum_to_size(ctx.step_shape), None, None, None


def learned_step(x: Tensor, step: Tensor, low: Tensor, high: Tensor, sharing: int) -> Tensor:
    """Fake-quantize with a learnable step; gamma = 1 / sqrt(sharing * high), `sharing` elements have one step."""
    gamma = torch.rsqrt(high * sharing)
    result: Tensor = LearnedStepFunction.apply(x, step, low, high, gamma)  # type: ignore[no-untyped-call]
    return result


class ReSTESign(torch.autograd.Function):
    """sign(x) with sign(0) = +1; the gradient is that of sign(x) |x|^(1/o), kept finite near 0 and cut beyond 1.5.

    Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural
    Networks Training", 2023.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.order = order
        return torch.where(x >= 0, 1.0, -1.0)

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
    power = size.clamp_min(RESTE_FLAT).pow((1 - order) / order) / order
    slope = torch.where(size <= RESTE_FLAT, RESTE_FLAT ** (1 / order) / RESTE_FLAT, power)
    return slope * (size <= RESTE_CLIP)


def reste_order(progress: float) -> float:
    """o = 1 + (1 - cos(pi r / 2)) * 2: from 1 (straight-through) at the start, r = 0, to 3 at the end, r = 1."""
    return 1 + (1 - math.cos(math.pi * progress / 2)) * (RESTE_LAST_ORDER - 1)
