"""Integers with a step that is not learned: for values whose range is known, such as the gates of a recurrent cell.

A step that is a power of two makes arithmetic on the values exact in float32, as it is on the codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import Format
from subbyte.formats.integer import INT, UINT
from subbyte.models.quant import primitives
from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.quant.straight_through import straight_through


@dataclass(frozen=True)
class FixedStep:
    """value = code x step, code = clip(round(x / step)) in 2 to 8 bits."""

    step: float
    bits: int = 8
    signed: bool = True

    def __post_init__(self) -> None:
        if self.bits not in INT:
            raise QuantizationError(f"FixedStep has 2 to 8 bits, got {self.bits}")
        if not 2.0**-64 <= self.step <= 2.0**64:
            raise QuantizationError(f"FixedStep has a step from 2^-64 to 2^64, got {self.step}")

    @property
    def format_name(self) -> str:
        return (INT if self.signed else UINT)[self.bits].name

    def activation_quantizer(self, layer: nn.Module) -> ActivationQuantizer:
        return FixedStepActivation(self)


class FixedStepActivation(ActivationQuantizer):
    """Codes of an activation tensor, ties to even; straight-through gradient within the range."""

    def __init__(self, config: FixedStep) -> None:
        super().__init__()
        table = INT if config.signed else UINT
        self._format = table[config.bits]
        values = self._format.levels.values
        self.register_buffer("step", torch.tensor(config.step, dtype=torch.float32), persistent=False)
        self.register_buffer("low", torch.tensor(float(values.min())), persistent=False)
        self.register_buffer("high", torch.tensor(float(values.max())), persistent=False)
        # Rounded once: 1 / float32(1 / 7) is not 7 in float32.
        self.register_buffer("inverse_step", torch.tensor(1.0 / config.step, dtype=torch.float32), persistent=False)

    step: Tensor
    inverse_step: Tensor
    low: Tensor
    high: Tensor

    @property
    def format(self) -> Format:
        return self._format

    def scales(self) -> Tensor:
        return self.step

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return primitives.quantize(x, self.inverse_step, self.low, self.high), None

    def fake_quantize(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = primitives.quantize(x, self.inverse_step, self.low, self.high) * self.step
        return straight_through(torch.clamp(x, self.low * self.step, self.high * self.step), value)


class Codes(nn.Module):
    """x rounded and clipped to integers of `bits` bits, integer-valued float32, in training with a gradient."""

    def __init__(self, bits: int = 8, *, signed: bool = True) -> None:
        super().__init__()
        self.activation_quantizer = FixedStep(1.0, bits, signed).activation_quantizer(self)

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.activation_quantizer
        return quantizer.quantize(x)[0] if quantizer.integer_mode else quantizer(x)
