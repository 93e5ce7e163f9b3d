"""How values become a network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import DataError


@dataclass(frozen=True)
class Normalization:
    """How a pixel becomes a network's input: (pixel / largest - mean[channel]) / deviation[channel], in float32."""

    largest: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        divisors = (self.largest, *self.deviation)
        if not all(map(math.isfinite, (*divisors, *self.mean))) or any(value <= 0 for value in divisors):
            raise DataError(
                f"normalisation by largest {self.largest}, mean {self.mean}, deviation {self.deviation}: expected "
                "finite numbers, largest and deviation above 0."
            )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [..., channels, height, width] of any dtype to float32."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).reshape(-1, 1, 1)
        deviation = torch.tensor(self.deviation, dtype=torch.float32, device=pixels.device).reshape(-1, 1, 1)
        return (pixels.to(torch.float32) / self.largest - mean) / deviation
