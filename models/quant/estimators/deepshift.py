"""Weights that are powers of two: DeepShift-Q. Elhoushi et al., "DeepShift: Towards Multiplication-Less Neural
Networks", 2021.

The paper rounds p = round(log2 |w|) with |w| clamped to [2^lo, 1] (lo = -15 for 5 bits), for the whole network alike.
We depart from that in two things, both so that four bits serve: the window of exponents goes with each output
channel's largest one, P_c = round(log2(max |w_c|)), and is seven exponents wide (P_c - 6 ... P_c); and there is a
zero, for weights of at most half of the smallest power, where the paper's clamp would give the smallest power. So
scale_c = 2^(P_c - 6), the levels are 0, +-1, +-2, ... +-64, and every value is still a power of two or zero.
Gradient: straight-through, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.formats import PerChannel
from subbyte.formats.power_of_two import POW2
from subbyte.models.quant.quantizer import WeightConfig, WeightQuantizer
from subbyte.models.quant.register import register_weights
from subbyte.models.quant.statistics import SMALLEST_STEP

_HALFWAY = math.sqrt(0.5)


def rounded_log2(size: Tensor) -> Tensor:
    """round(log2(size)) of positive float32 as float32, from the number's own exponent: the same on every machine.

    size = m 2^e with m in [1/2, 1), and log2(m) rounds to -1 below sqrt(1/2), which no float32 equals.
    """
    mantissa, exponent = torch.frexp(size)
    # float32(sqrt(1/2)) is a little less than sqrt(1/2), so that it belongs to the lower side.
    return exponent.to(size.dtype) - (mantissa <= _HALFWAY).to(size.dtype)


@dataclass(frozen=True)
class DeepShiftQ:
    """Zero, or a sign and one of seven exponents, in four bits (format pow2_4)."""

    @property
    def format_name(self) -> str:
        return POW2[4].name

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        return DeepShiftQWeight(weight)


class DeepShiftQWeight(WeightQuantizer):
    """Power-of-two levels of a weight; the window of exponents follows each channel's largest weight."""

    format = POW2[4]
    granularity = PerChannel(0)
    largest_exponent = 6

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        largest = w.detach().abs().flatten(1).amax(dim=1).clamp_min(SMALLEST_STEP)
        return torch.exp2(rounded_log2(largest) - self.largest_exponent)

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        size = (w / scale).abs()
        exponent = rounded_log2(size.clamp_min(0.25)).clamp(0, self.largest_exponent)
        return torch.where(size > 0.5, torch.exp2(exponent), 0.0) * torch.sign(w)


@register_weights("pow2")
def pow2() -> WeightConfig:
    """zero or a power of two, seven exponents per channel (DeepShift-Q)"""
    return DeepShiftQ()
