"""Per-token dynamic quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.formats.reference import quantize_per_token
from subbyte.runtime.manifest import ELEMENTWISE
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Operator


@dataclass(frozen=True, eq=False)
class QuantizeTokens(Operator):
    """Per-token dynamic quantization: float32 [rows, channels] to codes (zero point 128) and step float32 [rows, 1].

    Arithmetic of formats.reference.quantize_per_token.
    """

    rows: int
    channels: int
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        codes, step = quantize_per_token(inputs[0].reshape(self.rows, self.channels))
        return [(codes + 128).astype(np.uint8), step]
