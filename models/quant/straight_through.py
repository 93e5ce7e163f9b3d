"""The straight-through gradient, which a quantizer has unless it says otherwise.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation", 2013.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
