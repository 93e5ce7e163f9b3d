"""Dynamic 8-bit activations, one step for each token: BitNet b1.58, 2024, and docs/numbers.md.

largest = max(max |x|, 1e-5) along the last axis; code = clip(round(x 128 / largest), -128, 127); step = largest / 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import PerToken
from subbyte.formats.integer import INT
from subbyte.models.quant import primitives
from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.quant.straight_through import straight_through


@dataclass(frozen=True)
class DynamicPerToken:
    """8-bit codes with a step for each token of a Linear; a convolution has no tokens and gets an 8-bit LearnedStep."""

    @property
    def format_name(self) -> str:
        return INT[8].name

    def activation_quantizer(self, layer: nn.Module) -> ActivationQuantizer:
        if isinstance(layer, nn.Linear):
            return DynamicPerTokenActivation()
        return LearnedStep(8).activation_quantizer(layer)


class DynamicPerTokenActivation(ActivationQuantizer):
    """Codes and steps found at run time; straight-through gradient. It has no parameters."""

    format = INT[8]
    granularity = PerToken()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return primitives.quantize_per_token(x)

    def scales(self) -> Tensor:
        raise QuantizationError("a per-token quantizer has no stored scale; quantize(x) gives the codes and the steps")

    def static_step(self) -> float:
        return 1.0

    def fake_quantize(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            codes, step = primitives.quantize_per_token(x)
            value = codes * step
        return straight_through(x, value)
