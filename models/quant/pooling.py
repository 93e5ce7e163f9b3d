"""Average pooling made exact: quantize to 8 bits, add up the integer codes, multiply once by float32(step / window)."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from subbyte.models.quant.constants import Constants
from subbyte.models.quant.functional import integer_sum
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
    """Mixin for nn.AdaptiveAvgPool2d(1): a ReduceSum over height and width."""

    def window(self, x: Tensor) -> int:
        return int(x.shape[-1]) * int(x.shape[-2])

    def sum_codes(self, codes: Tensor) -> Tensor:
        return codes.sum(dim=(-2, -1), keepdim=True)


class QuantizedWindowPool(QuantizedAveragePool):
    """Mixin for nn.AvgPool2d without padding: a depthwise convolution with ones."""

    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int]

    def _kernel(self) -> tuple[int, int]:
        size = self.kernel_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def window(self, x: Tensor) -> int:
        height, width = self._kernel()
        return height * width

    def sum_codes(self, codes: Tensor) -> Tensor:
        channels = int(codes.shape[-3])
        ones = torch.ones((channels, 1, *self._kernel()), dtype=codes.dtype, device=codes.device)
        # The Round keeps onnxruntime from folding the Mul that follows into the ones.
        return integer_sum(F.conv2d(codes, ones, stride=self.stride, groups=channels))
