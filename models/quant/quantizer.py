"""What a quantizer is: the base classes of weight and activation quantizers, and their configs.

Codes are integer-valued float32 *levels* (the stored bit patterns are made by `export`). In every mode
`fake_quantize(x) == dequantize(codes(x))` exactly; the difference is that `fake_quantize` has a gradient.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import Format, Granularity, LowBitTensor, PerTensor
from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.parameter_groups import HasParameterGroups, ParameterGroup
from subbyte.models.quant.primitives import expand_scale
from subbyte.models.quant.statistics import StepOf
from subbyte.models.quant.straight_through import straight_through


class WeightQuantizer(HasParameterGroups):
    """Turns a float32 weight [rows, ...] into levels and scales; used as a parametrization of a layer's weight.

    A subclass gives `format`, `granularity`, `scale(w)` and `levels(w, scale)`; and its own `fake_quantize` when the
    gradient is not the straight-through one.
    """

    format: Format
    granularity: Granularity = PerTensor()

    def attach(self, source: nn.Module | Tensor) -> None:
        """Say where the latent weight is: the parametrized layer, or a tensor. It is not registered: it is not ours."""
        self.__dict__["_source"] = source

    def latent(self) -> Tensor:
        """The float32 weight that is trained; raises QuantizationError when the quantizer was never attached."""
        source = self.__dict__.get("_source")
        if source is None:
            raise QuantizationError("this weight quantizer is attached to no weight; call attach(layer) first")
        if isinstance(source, Tensor):
            return source
        latent: Tensor = source.parametrizations.weight.original
        return latent

    def scale(self, w: Tensor) -> Tensor:
        """The positive scales of a weight, float32 of granularity.scale_shape((rows, depth))."""
        raise NotImplementedError

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        """Integer-valued levels of w's shape; `scale` is expanded so that it broadcasts against w."""
        raise NotImplementedError

    def fake_quantize(self, w: Tensor) -> Tensor:
        """level x scale, with a gradient (straight-through unless the class says otherwise)."""
        with torch.no_grad():
            scale = self.expand(self.scale(w), w)
            value = self.levels(w, scale) * scale
        return straight_through(w, value)

    def codes(self, w: Tensor) -> Tensor:
        """Integer-valued float32 levels of w's shape."""
        with torch.no_grad():
            return self.levels(w, self.expand(self.scale(w), w))

    def scales(self) -> Tensor:
        """The scales of the attached weight."""
        with torch.no_grad():
            return self.scale(self.latent())

    def dequantize(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """codes x scale (of the attached weight unless given)."""
        return codes * self.expand(self.scales() if scale is None else scale, codes)

    def expand(self, scale: Tensor, like: Tensor) -> Tensor:
        """The scale so that it broadcasts against a tensor of the weight's shape."""
        return expand_scale(scale, like.shape, self.granularity)

    def export(self) -> LowBitTensor:
        """The attached weight as packed codes with its scales."""
        w = self.latent().detach()
        levels = self.codes(w).cpu().numpy().astype(self.format.levels.values.dtype)
        return LowBitTensor.from_levels(self.format, levels, self.scales().cpu().numpy(), self.granularity)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The latent weight, which decays, and the quantizer's own parameters, which do not."""
        latent = self.latent()
        weight = (ParameterGroup((latent,), decays=True),) if isinstance(latent, nn.Parameter) else ()
        return (*weight, *super().parameter_groups())

    def calibrate(self, step_of: StepOf) -> None:
        """Choose the steps of the attached weight by `step_of`; nothing where the scale follows from the weight."""

    def set_progress(self, fraction: float) -> None:
        """Training is this far, 0 to 1; for estimators that change on the way."""

    def forward(self, w: Tensor) -> Tensor:
        return self.fake_quantize(w)


class ActivationQuantizer(HasParameterGroups, Constants):
    """Turns float32 activations into codes; a submodule of the quantized layer.

    `pad_value` is the level of padding: 0, but +1 for binary values, which have no zero.
    """

    granularity: Granularity = PerTensor()
    pad_value: float = 0.0

    @property
    def format(self) -> Format:
        """The format of the codes."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes of x, and the step [..., 1] where it is found at run time, else None."""
        raise NotImplementedError

    def scales(self) -> Tensor:
        """The static step, float32 []; raises QuantizationError for a dynamic quantizer."""
        raise NotImplementedError

    def static_step(self) -> float:
        """The step's value as it enters a layer's scale; 1 for a dynamic quantizer."""
        return float(self.scales())

    def fake_quantize(self, x: Tensor) -> Tensor:
        """code x step, with a gradient."""
        raise NotImplementedError

    def codes(self, x: Tensor) -> Tensor:
        """Integer-valued float32 codes of x's shape."""
        with torch.no_grad():
            return self.quantize(x)[0]

    def dequantize(self, codes: Tensor, scale: Tensor | None = None) -> Tensor:
        """codes x step (the static one unless given)."""
        return codes * (self.scales() if scale is None else scale)

    def compute_constants(self) -> None:
        """Nothing to compute, unless a subclass has constants."""

    def set_progress(self, fraction: float) -> None:
        """Training is this far, 0 to 1; for estimators that change on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fake_quantize(x)


class WeightConfig(Protocol):
    """A frozen dataclass that makes weight quantizers."""

    @property
    def format_name(self) -> str: ...

    def weight_quantizer(self, weight: Tensor) -> WeightQuantizer:
        """A quantizer for this float32 weight [rows, ...], attached to it."""
        ...


class ActivationConfig(Protocol):
    """A frozen dataclass that makes activation quantizers."""

    @property
    def format_name(self) -> str: ...

    def activation_quantizer(self, layer: nn.Module) -> ActivationQuantizer:
        """A quantizer for the input of this layer."""
        ...
