"""The schemes that come with subbyte. Each function's parameters are the scheme's options.

The option `activations` that most share is "tensor" (one learned step) or "token" (dynamic, one step for each token of
a Linear). Every scheme has `keep`, the bits of a model's first and last layer, besides.
"""

from __future__ import annotations

from typing import Literal

from subbyte.errors import QuantizationError
from subbyte.formats import Granularity, PerChannel, PerGroup
from subbyte.models.quant.estimators.absmean import AbsMean
from subbyte.models.quant.estimators.deepshift import DeepShiftQ
from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.estimators.per_token import DynamicPerToken
from subbyte.models.quant.estimators.reste import Sign, Threshold
from subbyte.models.quant.quantizer import ActivationConfig
from subbyte.models.quant.scheme import Scheme, register_scheme

Activations = Literal["tensor", "token"]


def _activations(choice: str) -> ActivationConfig:
    configs: dict[str, ActivationConfig] = {"tensor": LearnedStep(bits=8), "token": DynamicPerToken()}
    if choice not in configs:
        raise QuantizationError(f"activations are quantized by 'tensor' or by 'token', got '{choice}'")
    return configs[choice]


@register_scheme("float")
def float_scheme() -> Scheme:
    """no quantization: the model stays as torch made it"""
    return Scheme()


@register_scheme("int8")
def int8(activations: Activations = "tensor") -> Scheme:
    """8-bit integers, learned step per output channel (LSQ); 8-bit activations"""
    return Scheme(LearnedStep(8, PerChannel(0)), _activations(activations))


@register_scheme("int4")
def int4(group_size: int | None = None, activations: Activations = "tensor") -> Scheme:
    """4-bit integers, learned step per output channel or group (LSQ); 8-bit activations"""
    granularity: Granularity = PerChannel(0) if group_size is None else PerGroup(group_size)
    return Scheme(LearnedStep(4, granularity), _activations(activations))


@register_scheme("ternary")
def ternary(statistic: Literal["mean", "median"] = "mean", activations: Activations = "tensor") -> Scheme:
    """-1, 0, +1 times mean |w| (BitNet b1.58); 8-bit activations"""
    return Scheme(AbsMean(statistic), _activations(activations))


@register_scheme("ternary-median")
def ternary_median(activations: Activations = "tensor") -> Scheme:
    """-1, 0, +1 times the lower median of |w| (BitNet b1.58 Reloaded); 8-bit activations"""
    return ternary("median", activations)


@register_scheme("binary")
def binary() -> Scheme:
    """signs times mean |w| per channel, ReSTE gradient; binary activations with learned thresholds (ReActNet)"""
    return Scheme(Sign(), Threshold())


@register_scheme("pow2")
def pow2(activations: Activations = "tensor") -> Scheme:
    """zero or a power of two, seven exponents per channel (DeepShift-Q); 8-bit activations"""
    return Scheme(DeepShiftQ(), _activations(activations))
