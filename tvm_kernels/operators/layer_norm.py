"""Layer normalization over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Fused


@dataclass(frozen=True, eq=False)
class LayerNorm(Fused):
    """float32 (x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, then the epilogue.

    The reference computes in float64 and rounds before the epilogue.
    """

    rows: int
    channels: int
    epsilon: float
    gamma: Array
    beta: Array
    epilogue: Epilogue
    inputs = 1
    macs = 0

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        x = inputs[0].reshape(self.rows, self.channels).astype(np.float64)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + self.epsilon) * self.gamma.astype(np.float64) + self.beta.astype(np.float64)
        return self.epilogue.reference(y, tensors)
