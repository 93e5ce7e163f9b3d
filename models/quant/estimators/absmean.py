"""Ternary weights by AbsMean. Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits" (BitNet
b1.58), 2024.

w = scale * clip(round(w / scale), -1, 1) with scale = max(mean |w|, 1e-5) over the whole tensor; straight-through
gradient. The median is the variant of Nielsen and Schneider-Kamp, "BitNet b1.58 Reloaded", 2024; it is the lower
median.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from subbyte.errors import QuantizationError
from subbyte.formats import PerTensor
from subbyte.formats.ternary import TERNARY
from subbyte.models.quant.quantizer import WeightConfig, WeightQuantizer
from subbyte.models.quant.register import register_weights
from subbyte.models.quant.statistics import SMALLEST_STEP, mean_size


@dataclass(frozen=True)
class AbsMean:
    """Levels -1, 0, +1 with one scale per tensor, the mean (or lower median) of |w|."""

    statistic: Literal["mean", "median"] = "mean"

    def __post_init__(self) -> None:
        if self.statistic not in ("mean", "median"):
            raise QuantizationError(f"AbsMean has the statistics 'mean' and 'median', got '{self.statistic}'")

    @property
    def format_name(self) -> str:
        return TERNARY.name

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        return AbsMeanWeight(weight, self.statistic)


class AbsMeanWeight(WeightQuantizer):
    """Ternary levels of a weight; the scale follows the weight."""

    format = TERNARY
    granularity = PerTensor()

    def __init__(self, weight: Tensor, statistic: str) -> None:
        super().__init__()
        self.statistic = statistic
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        size = w.detach().abs().median() if self.statistic == "median" else mean_size(w.detach(), self.granularity)
        return size.clamp_min(SMALLEST_STEP)

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return torch.clamp(torch.round(w / scale), -1.0, 1.0)


@register_weights("ternary")
def ternary(statistic: Literal["mean", "median"] = "mean") -> WeightConfig:
    """-1, 0, +1 times the mean (or lower median) of |w| (BitNet b1.58)"""
    return AbsMean(statistic)
