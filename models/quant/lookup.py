"""A function of one value in integers: GELU, sigmoid, tanh or any other, as a table with an entry for each code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.eval_constants import Constants
from subbyte.models.quant.primitives import call, is_exporting
from subbyte.models.quant.quantizer import ActivationConfig

ENTRIES = 256


class Lookup(Constants):
    """y = function(x quantized to 8 bits), float32 of x's shape; in eval mode one look-up in a table of 256 values.

    `function` works on each element and may be a module with parameters. Training goes through it, with the gradient
    of the quantizer. Where a quantizer reads y, a compiled model looks its codes up: no float is computed.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], activations: ActivationConfig | None = None) -> None:
        super().__init__()
        self.function = function
        self.activation_quantizer = (activations or LearnedStep(8)).activation_quantizer(self)
        self.table, self.low = torch.empty(0), torch.empty(())

    def compute_constants(self) -> None:
        quantizer = self.activation_quantizer
        self.low = torch.tensor(float(quantizer.format.levels.values[0]), device=quantizer.scales().device)
        codes = self.low + torch.arange(ENTRIES, dtype=torch.float32, device=self.low.device)
        self.table = self.function(quantizer.dequantize(codes)).float()

    def forward(self, x: Tensor) -> Tensor:
        if not self.integer_mode:
            return self.function(self.activation_quantizer(x))
        codes, _ = self.activation_quantizer.quantize(x)
        self.ensure_constants()
        if is_exporting():
            return call("Lookup", codes, self.table, self.low)[0]
        return self.table[(codes - self.low).long()]
