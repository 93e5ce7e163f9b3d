"""Batch norm of a quantized model in eval mode: part of the product before it, or a Mul and an Add of float32
constants.

y = x * factor + shift with factor = gamma / sqrt(var + eps) and shift = beta - mean * factor, in float64 and rounded
once, so that every engine computes the same bits. A linked batch norm is the identity: its layer's scale and bias
absorbed it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.primitives import is_exporting


class QuantizedBatchNorm(Constants):
    """Mixin for nn.BatchNorm1d and nn.BatchNorm2d with running statistics. Made by `quantize`, not by hand."""

    running_mean: Tensor
    running_var: Tensor
    eps: float
    eval_scale: Tensor
    eval_bias: Tensor

    @property
    def layer(self) -> Any:
        """The quantized layer whose scale and bias hold this batch norm in eval mode, or None."""
        return self.__dict__.get("_layer")

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """factor and shift [C] in float64, on the CPU: eval output = x * factor + shift."""
        mean, var = self.running_mean.cpu().double(), self.running_var.cpu().double()
        factor = 1.0 / torch.sqrt(var + self.eps)
        weight, bias = cast("Tensor | None", self.weight), cast("Tensor | None", self.bias)
        if weight is not None:
            factor = factor * weight.cpu().double()
        shift = -mean * factor
        return factor, shift if bias is None else shift + bias.cpu().double()

    def compute_constants(self) -> None:
        factor, shift = self.factor_and_shift()
        self.eval_scale = factor.float().to(self.running_mean.device)
        self.eval_bias = shift.float().to(self.running_mean.device)

    def forget_constants(self) -> None:
        super().forget_constants()
        if self.layer is not None:
            self.layer.forget_constants()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return cast(Tensor, super().forward(x))
        if self.layer is not None:
            # Where the layer trains and this norm is frozen, the layer has not absorbed it.
            return x if self.layer.integer_mode else cast(Tensor, super().forward(x))
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale, bias = self._eval_constants(x)
        return x * scale.reshape(shape) + bias.reshape(shape)

    def _eval_constants(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frozen = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if frozen and not is_exporting() and not torch.compiler.is_exporting():
            # Statistics frozen within a training run: the same numbers, with gradients for gamma and beta.
            factor, shift = self.factor_and_shift()
            return factor.float().to(x.device), shift.float().to(x.device)
        self.ensure_constants()
        return self.eval_scale, self.eval_bias


def link(layer: nn.Module, norm: QuantizedBatchNorm) -> None:
    """Make `norm` part of `layer`'s scale and bias in eval mode. Neither becomes a child of the other."""
    layer.__dict__["_batch_norm"] = norm
    norm.__dict__["_layer"] = layer
