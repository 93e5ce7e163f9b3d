"""The integers of 2 to 8 bits in the registers: `int4` with a learned step, `int8` also with a step for each token."""

from __future__ import annotations

from typing import Literal

from subbyte.errors import QuantizationError
from subbyte.formats import PerChannel, PerGroup
from subbyte.formats.integer import INT
from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.estimators.per_token import DynamicPerToken
from subbyte.models.quant.quantizer import ActivationConfig, WeightConfig
from subbyte.models.quant.register import register_activations, register_weights


def _register(bits: int) -> None:
    @register_weights(f"int{bits}")
    def weights(group_size: int | None = None) -> WeightConfig:
        """integers, a learned step per output channel, or per group of `group_size` (LSQ)"""
        return LearnedStep(bits, PerChannel(0) if group_size is None else PerGroup(group_size))

    @register_activations(f"int{bits}")
    def activations(per: Literal["tensor", "token"] = "tensor") -> ActivationConfig:
        """integers, one learned step (LSQ); at 8 bits also `per: token`, a step for each token found at run time"""
        if per == "tensor":
            return LearnedStep(bits)
        if bits != 8:
            raise QuantizationError(f"activations per token have 8 bits, got int{bits}; take int8 or per: tensor")
        return DynamicPerToken()


for _bits in INT:
    _register(_bits)
