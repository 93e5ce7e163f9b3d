"""Average pooling made exact: quantize to 8 bits, add up the integer codes, multiply once by float32(step / window)."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.primitives import integer_sum
from subbyte.models.quant.quantizer import ActivationQuantizer


class QuantizedAveragePool(Constants):
    """Mixin of the average pools. Made by `quantize`, not by hand."""

    activation_quantizer: ActivationQuantizer
    step: float

    def install(self, activations: ActivationQuantizer) -> None:
        """Put the quantizer of the input in place."""
        self.activation_quantizer = activations

    def compute_constants(self) -> None:
        self.step = self.activation_quantizer.static_step()

    def window(self, x: Tensor) -> int:
        """How many places one output is the mean of."""
        raise NotImplementedError

    def sum_codes(self, codes: Tensor) -> Tensor:
        """The exact integer sums over the window."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self.integer_mode:
            return cast(Tensor, super().forward(self.activation_quantizer(x.float())))
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # integers need all of float32's 24 bits
                return self._integer_forward(x.float())
        return self._integer_forward(x)

    def _integer_forward(self, x: Tensor) -> Tensor:
        codes, _ = self.activation_quantizer.quantize(x)
        self.ensure_constants()
        return self.sum_codes(codes) * float(np.float32(self.step / self.window(x)))


class QuantizedGlobalPool(QuantizedAveragePool):
    """Mixin for nn.AdaptiveAvgPool1d(1) and nn.AdaptiveAvgPool2d(1): a ReduceSum over length, or height and width."""

    def _axes(self) -> tuple[int, ...]:
        return (-1,) if isinstance(self, nn.AdaptiveAvgPool1d) else (-2, -1)

    def window(self, x: Tensor) -> int:
        return math.prod(int(x.shape[axis]) for axis in self._axes())

    def sum_codes(self, codes: Tensor) -> Tensor:
        return codes.sum(dim=self._axes(), keepdim=True)


class QuantizedWindowPool(QuantizedAveragePool):
    """Mixin for nn.AvgPool1d and nn.AvgPool2d without padding: a depthwise convolution with ones."""

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]

    def _kernel(self) -> tuple[int, ...]:
        axes = 1 if isinstance(self, nn.AvgPool1d) else 2
        size = self.kernel_size
        return (size,) * axes if isinstance(size, int) else tuple(size)

    def window(self, x: Tensor) -> int:
        return math.prod(self._kernel())

    def sum_codes(self, codes: Tensor) -> Tensor:
        kernel = self._kernel()
        channels = int(codes.shape[-1 - len(kernel)])
        ones = torch.ones((channels, 1, *kernel), dtype=codes.dtype, device=codes.device)
        convolution = F.conv1d if len(kernel) == 1 else F.conv2d
        # The Round keeps onnxruntime from folding the Mul that follows into the ones.
        return integer_sum(convolution(codes, ones, stride=self.stride, groups=channels))
