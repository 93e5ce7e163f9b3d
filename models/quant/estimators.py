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
        ctx.save_for_backward(scaled, low, high, gamma)
        ctx.step_shape = step.shape
        return torch.round(scaled).clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # Activations are large: few passes over them, few temporaries, laid out as the gradient is. `inside` is 0 or
        # 1 in float32, since torch copies a bool before it multiplies. Bounds are integers: round(clipped) keeps them.
        scaled, low, high, gamma = ctx.saved_tensors
        grad = grads[0]
        clipped = torch.clamp(scaled, low, high, out=torch.empty_like(grad))
        inside = torch.eq(clipped, scaled, out=torch.empty_like(grad))
        slope = torch.round(clipped).addcmul_(clipped, inside, value=-1)
        return inside.mul_(grad), slope.mul_(grad).mul_(gamma).sum_to_size(ctx.step_shape), None, None, None


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
        return torch.ge(x, 0, out=torch.empty_like(x)).mul_(2.0).sub_(1.0)  # torch.where takes ten times as long

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
    return slope.mul_(torch.le(size, RESTE_CLIP, out=size))


def reste_order(progress: float) -> float:
    """o = 1 + (1 - cos(pi r / 2)) * 2: from 1 (straight-through) at the start, r = 0, to 3 at the end, r = 1."""
    return 1 + (1 - math.cos(math.pi * progress / 2)) * (RESTE_LAST_ORDER - 1)
