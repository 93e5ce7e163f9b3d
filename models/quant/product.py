"""Quantized Linear and Conv layers: fake-quantized while training, integer-valued products in eval mode.

A layer keeps its class (it becomes an instance of a subclass), its weight is parametrized by a weight quantizer, and
its input goes through `activation_quantizer`; one of the two may be absent. In eval mode the graph is that of
docs/onnx-dialect.md, "A quantized layer":

    codes -> product of integer-valued floats, no bias -> x step (per token) -> x scale -> + bias

`scale` and `bias` hold everything else, a linked batch norm too; they are computed in float64 and rounded once to
float32. Weights by group (their product is with the dequantized weights), real levels, and an input or weights that
stay in float are the exception: a sum of floats, whose order no engine promises; it agrees between engines within about
depth x 2^-24 of the largest term.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subbyte.errors import QuantizationError
from subbyte.formats import LowBitTensor, PerGroup
from subbyte.models.quant import primitives
from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.primitives import expand_scale
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer


class QuantizedProduct(Constants):
    """Mixin of a layer that multiplies activations with weights, either of them quantized. Made by `quantize`."""

    activation_quantizer: ActivationQuantizer | None
    bias: Tensor | None
    weight: Tensor
    weight_levels: Tensor
    weight_packed: Tensor | None = None
    weight_scale: Tensor
    output_scale: Tensor | None = None
    output_bias: Tensor | None = None

    def install(self, weights: WeightQuantizer | None, activations: ActivationQuantizer | None) -> None:
        """Put the quantizers in place; what has none stays in float."""
        self.activation_quantizer = activations
        if weights is not None:
            parametrize.register_parametrization(self, "weight", weights)
            weights.attach(self)

    # ---- what differs between the kinds of layer ----

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """The product without bias; x and w real or integer-valued."""
        raise NotImplementedError

    def channel_shape(self) -> tuple[int, ...]:
        """The shape in which a vector over output channels broadcasts against the output."""
        raise NotImplementedError

    # ---- what there is to know about a layer ----

    @property
    def weight_quantizer(self) -> WeightQuantizer | None:
        """The quantizer of the weight; None where only the input is quantized."""
        if not parametrize.is_parametrized(self, "weight"):
            return None
        parametrizations = cast(Any, self.parametrizations)
        return cast(WeightQuantizer, parametrizations.weight[0])

    @property
    def batch_norm(self) -> nn.Module | None:
        """The batch norm that is part of this layer's scale and bias in eval mode."""
        return cast("nn.Module | None", self.__dict__.get("_batch_norm"))

    @property
    def sums_integers(self) -> bool:
        """Whether the product adds up integers: codes by levels, but not by group, nor by real levels."""
        weights = self.weight_quantizer
        if weights is None or self.activation_quantizer is None:
            return False
        return weights.format.levels.integer and not isinstance(weights.granularity, PerGroup)

    def low_bit_weight(self) -> LowBitTensor:
        """The weight as packed codes and scales; raises QuantizationError where it is float."""
        if self.weight_quantizer is None:
            raise QuantizationError("this layer's weights are float32: only its input is quantized")
        return self.weight_quantizer.export()

    # ---- eval-mode constants ----

    def compute_constants(self) -> None:
        weights, activations = self.weight_quantizer, self.activation_quantizer
        self.weight_packed = None
        factors = []
        if activations is not None and activations.granularity.name != "token":
            factors.append(torch.tensor(activations.static_step(), dtype=torch.float64))
        if weights is not None:
            latent = weights.latent().detach()
            self.weight_levels, self.weight_scale = weights.codes(latent), weights.scales()
            if isinstance(weights.granularity, PerGroup):
                expanded = expand_scale(self.weight_scale, latent.shape, weights.granularity)
                self.weight_levels = self.weight_levels * expanded
            else:
                factors.append(self.weight_scale.detach().cpu().double())
        bias = None if self.bias is None else self.bias.detach().cpu().double()
        norm = self.absorbed()
        if norm is not None:
            factor, shift = norm.factor_and_shift()
            factors.append(factor)
            bias = shift if bias is None else bias * factor + shift
        rows = torch.ones(self.latent_weight().shape[0], dtype=torch.float64)
        self.output_scale = self._constant(reduce(torch.mul, factors, rows)) if factors else None
        self.output_bias = None if bias is None else self._constant(bias)

    def latent_weight(self) -> Tensor:
        """The float32 weight that is trained."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer.latent()

    def sources(self) -> Iterator[Tensor]:
        norm = self.batch_norm
        return chain(super().sources(), () if norm is None else chain(norm.parameters(), norm.buffers()))

    def _constant(self, values: Tensor) -> Tensor:
        return values.float().reshape(self.channel_shape()).to(self.latent_weight().device)

    def absorbed(self) -> Any:
        """The linked batch norm, if it takes part in eval mode now."""
        norm = self.batch_norm
        return None if norm is None or norm.training else norm

    def pack_weights(self) -> None:
        if self.weight_quantizer is not None:
            packed = torch.from_numpy(self.low_bit_weight().packed)
            self.weight_packed = packed.to(self.weight_levels.device)

    def _eval_weight(self) -> Tensor:
        quantizer = self.weight_quantizer
        if quantizer is None:
            return self.weight
        if not primitives.is_exporting():
            return self.weight_levels
        if self.weight_packed is None:
            raise QuantizationError(
                "a layer's weights are not packed for the export; use `with exporting(output_shapes, model):`"
            )
        shape, granularity = tuple(self.weight_levels.shape), quantizer.granularity
        if isinstance(granularity, PerGroup):
            return primitives.dequantize_grouped(
                self.weight_packed, shape, self.weight_scale, granularity.size, quantizer.format
            )
        return primitives.decode(self.weight_packed, shape, quantizer.format)

    # ---- forward ----

    def forward(self, x: Tensor) -> Tensor:
        if not self.integer_mode:
            quantizer = self.activation_quantizer
            y = self.product(x if quantizer is None else quantizer(x.float()), self.weight)
            return y if self.bias is None else y + self.bias.reshape(self.channel_shape())
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # integers need all of float32's 24 bits
                return self._eval_forward(x.float())
        return self._eval_forward(x)

    def _eval_forward(self, x: Tensor) -> Tensor:
        quantizer = self.activation_quantizer
        codes, step = (x, None) if quantizer is None else quantizer.quantize(x)
        self.ensure_constants()
        y = self.product(codes, self._eval_weight())
        if self.sums_integers:
            y = primitives.integer_sum(y)
        if step is not None:
            y = y * step
        if self.output_scale is not None:
            y = y * self.output_scale
        return y if self.output_bias is None else y + self.output_bias


class QuantizedLinear(QuantizedProduct):
    """Mixin for nn.Linear: [..., in] x [out, in]^T."""

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        if self.integer_mode and self.batch_norm is not None and x.dim() != 2:
            raise QuantizationError(f"this Linear is linked to a batch norm and takes [batch, features], got {x.shape}")
        return torch.matmul(x, w.t())

    def channel_shape(self) -> tuple[int, ...]:
        return (-1,)


class QuantizedConv(QuantizedProduct):
    """Mixin for nn.Conv1d and nn.Conv2d, with the padding that the codes need."""

    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        before, after = self.pads()
        convolve = F.conv2d if len(self.kernel_size) == 2 else F.conv1d
        value = 0.0 if self.activation_quantizer is None else self.activation_quantizer.pad_value
        if value == 0 and before == after:
            return convolve(x, w, None, self.stride, before, self.dilation, self.groups)
        if any(before) or any(after):
            widths = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
            x = F.pad(x, widths, value=value)
        return convolve(x, w, None, self.stride, 0, self.dilation, self.groups)

    def pads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Padding before and after each spatial axis; `same` pads the odd place after, as torch does."""
        if self.padding == "valid":
            return (0,) * len(self.kernel_size), (0,) * len(self.kernel_size)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        padding = cast("tuple[int, ...]", self.padding)
        return padding, padding

    def channel_shape(self) -> tuple[int, ...]:
        return (1, -1, *[1] * len(self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == len(self.kernel_size) + 1:  # without a batch axis
            return super().forward(x.unsqueeze(0)).squeeze(0)
        return super().forward(x)
