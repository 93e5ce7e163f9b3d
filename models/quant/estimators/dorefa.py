"""DoReFa. Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients",
2016, equations 5 to 11 but for the gradients of 12, which stay in float.

With n = 2^k - 1 and quantize(r) = round(n r) / n for r from 0 to 1:

    activations    quantize(clip(x, 0, 1)): codes 0 ... n with the fixed step 1 / n
    weights        2 quantize(t / (2 max |t|) + 1/2) - 1 with t = tanh(w): odd levels -n ... n with the scale 1 / n
    1-bit weights  sign(w) mean |w| of the whole tensor

Rounding passes the gradient on; it goes through tanh and through the maximum, as the formula has them, and through
sign(w) as through w. A layer whose weights are all zero has level +1 everywhere, as sign(0) = +1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import QuantizationError
from subbyte.formats import Format, PerTensor
from subbyte.formats.binary import BINARY
from subbyte.formats.odd_integer import ODD
from subbyte.models.quant.estimators.fixed_step import FixedStep
from subbyte.models.quant.quantizer import ActivationConfig, WeightConfig, WeightQuantizer
from subbyte.models.quant.register import register_activations, register_weights
from subbyte.models.quant.scheme import Scheme, register_scheme
from subbyte.models.quant.statistics import SMALLEST_STEP, mean_size
from subbyte.models.quant.straight_through import straight_through


@dataclass(frozen=True)
class DoReFa:
    """Weights in 2 to 8 bits that divide -1 ... 1 evenly, or in 1 bit."""

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits != 1 and self.bits not in ODD:
            raise QuantizationError(f"DoReFa has weights of 1 to 8 bits, got {self.bits}")

    @property
    def format_name(self) -> str:
        return (BINARY if self.bits == 1 else ODD[self.bits]).name

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        return DoReFaSign(weight) if self.bits == 1 else DoReFaWeight(weight, ODD[self.bits])


class DoReFaWeight(WeightQuantizer):
    """Odd levels of tanh(w) relative to its largest magnitude; the scale is a constant."""

    granularity = PerTensor()

    def __init__(self, weight: Tensor, fmt: Format) -> None:
        super().__init__()
        self.format, self.largest = fmt, float(fmt.largest)
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        return w.new_tensor(1.0 / self.largest)

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return self._rounded(_normalized(w))

    def fake_quantize(self, w: Tensor) -> Tensor:
        """level x scale; d/dw is that of tanh(w) / max |tanh(w)|."""
        normalized = _normalized(w)
        with torch.no_grad():
            value = self._rounded(normalized) * self.scale(w)
        return straight_through(normalized, value)

    def _rounded(self, normalized: Tensor) -> Tensor:
        return 2 * torch.round(self.largest * (normalized / 2 + 0.5)) - self.largest


def _normalized(w: Tensor) -> Tensor:
    """tanh(w) / max |tanh(w)|, from -1 to 1."""
    squashed = torch.tanh(w)
    return squashed / squashed.abs().amax().clamp_min(SMALLEST_STEP)


class DoReFaSign(WeightQuantizer):
    """sign(w) times mean |w| of the whole tensor; straight-through gradient."""

    format = BINARY
    granularity = PerTensor()

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        return mean_size(w.detach(), self.granularity).clamp_min(SMALLEST_STEP)

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return torch.where(w >= 0, 1.0, -1.0)


@register_weights("dorefa")
def dorefa_weights(bits: int = 4) -> WeightConfig:
    """tanh(w) relative to its largest, divided evenly in `bits` bits; at 1 bit signs times mean |w| (DoReFa)"""
    return DoReFa(bits)


@register_activations("dorefa")
def dorefa_activations(bits: int = 4) -> ActivationConfig:
    """values from 0 to 1, divided evenly in `bits` bits, 2 to 8; others are clipped (DoReFa)"""
    return FixedStep(1 / (2**bits - 1) if bits > 0 else 0.0, bits, signed=False)


@register_scheme("dorefa")
def dorefa(weight_bits: int = 4, activation_bits: int = 4) -> Scheme:
    """tanh(w) relative to its largest in `weight_bits` bits; activations from 0 to 1 in `activation_bits` (DoReFa)"""
    return Scheme(dorefa_weights(weight_bits), dorefa_activations(activation_bits))
