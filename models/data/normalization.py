"""How values become a network's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import DataError

AT_ONCE = 1024  # samples that are in float64 at once, to be measured


@dataclass(frozen=True)
class Normalization:
    """How a value becomes a network's input: (value / largest - mean[channel]) / deviation[channel], in float32."""

    largest: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    axes: int = 2  # after the channel: 2 of an image, 1 of a series, 0 of a row of a table

    def __post_init__(self) -> None:
        divisors = (self.largest, *self.deviation)
        if not all(map(math.isfinite, (*divisors, *self.mean))) or any(value <= 0 for value in divisors):
            raise DataError(
                f"normalisation by largest {self.largest}, mean {self.mean}, deviation {self.deviation}: expected "
                "finite numbers, largest and deviation above 0."
            )
        if self.axes not in (0, 1, 2):
            raise DataError(f"normalisation of channels with {self.axes} axes after them: expected 0, 1 or 2.")

    def __call__(self, values: Tensor) -> Tensor:
        """Normalise pixels [..., C, H, W], series [..., C, L] or rows [..., columns] of any dtype to float32."""
        after = (1,) * self.axes
        mean = torch.tensor(self.mean, dtype=torch.float32, device=values.device).reshape(-1, *after)
        deviation = torch.tensor(self.deviation, dtype=torch.float32, device=values.device).reshape(-1, *after)
        return (values.to(torch.float32) / self.largest - mean) / deviation


def measured(values: Tensor, axes: int, largest: float = 1.0) -> Normalization:
    """The normalization that gives each channel of values [N, channels, ...] mean 0 and deviation 1.

    `axes` is how many follow the channel. A channel of one value is only shifted.
    """
    mean = _mean(values, lambda part: part, axes) / largest
    shift = mean.reshape(-1, *(1,) * axes)
    deviation = _mean(values, lambda part: (part / largest - shift).square(), axes).sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return Normalization(largest, tuple(mean.tolist()), tuple(deviation.tolist()), axes)


def _mean(values: Tensor, of: Callable[[Tensor], Tensor], axes: int) -> Tensor:
    """The mean of each channel, float64 [C], in parts: all values in float64 might not fit the memory."""
    over = (0, *range(2, 2 + axes))
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    for start in range(0, len(values), AT_ONCE):
        total += of(values[start : start + AT_ONCE].to(torch.float64)).sum(over)
    return total / max(1, values[:, :1].numel())
