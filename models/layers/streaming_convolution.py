"""A causal convolution over time that is given a signal piece by piece, as in keyword spotting.

The state `past` holds the last (kernel - 1) x dilation samples, the oldest first: of a quantized layer their codes, a
byte for each in a file. One call appends a piece and drops as many samples at the front: time is the
first axis, so the window is the past and the piece one after the other in memory, and what is kept is the end of it.
A buffer with an index that moves would copy less, but a product would then read a window that wraps around.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.product import QuantizedProduct
from subbyte.models.quant.quantizer import ActivationQuantizer
from subbyte.models.state import register_state


class StreamingConv1d(Constants):
    """x [batch, channels, t], any t -> [batch, out, t]: the samples before the first are zeros.

    Train it on whole signals, from `reset_states` on or by `whole`. Raises QuantizationError for a convolution with
    padding or a stride.
    """

    past: Tensor

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        if convolution.stride != (1,) or convolution.padding != (0,):
            raise QuantizationError(
                f"a streaming convolution has stride 1 and no padding, got stride {convolution.stride} and padding "
                f"{convolution.padding}; its state takes the place of the padding"
            )
        self.convolution = convolution
        self.samples = (convolution.kernel_size[0] - 1) * convolution.dilation[0]
        self.step = torch.ones(())
        if self.samples:
            register_state(self, "past", torch.zeros(1, self.samples, convolution.in_channels))

    def sources(self) -> Iterator[Tensor]:
        return chain(self.convolution.parameters(), self.convolution.buffers())

    def compute_constants(self) -> None:
        quantizer = self.quantizer()
        if quantizer is not None:
            self.step = quantizer.scales()

    def quantizer(self) -> ActivationQuantizer | None:
        """The quantizer of the convolution's input, if it has one."""
        return self.convolution.activation_quantizer if isinstance(self.convolution, QuantizedProduct) else None

    def whole(self, x: Tensor) -> Tensor:
        """The convolution of a whole signal [batch, channels, t], without the state."""
        y: Tensor = self.convolution(F.pad(x, (self.samples, 0)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        layer = self.convolution
        if not self.samples:
            return self.whole(x)
        quantizer = self.quantizer()
        if quantizer is not None:
            x, step = self.codes(quantizer, x)
        piece = x.transpose(1, 2)
        past = self.past if len(self.past) == len(x) else self.past.expand(len(x), -1, -1)
        window = torch.cat([past, piece], 1)
        self.past = window[:, piece.shape[1] :]
        if quantizer is not None:
            window = window * step
        y: Tensor = layer(window.transpose(1, 2))
        return y

    def codes(self, quantizer: ActivationQuantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in units of the step, and the step: the convolution quantizes their product to the same codes again."""
        if self.integer_mode:
            codes, _ = quantizer.quantize(x)
            self.ensure_constants()
            return codes, self.step
        values = quantizer(x)  # the first call of a training starts the step
        return values / quantizer.scales(), quantizer.scales()
