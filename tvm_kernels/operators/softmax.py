"""Softmax over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.runtime.manifest import ELEMENTWISE
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Operator


@dataclass(frozen=True, eq=False)
class Softmax(Operator):
    """float32 softmax over the last axis of [rows, channels]; the reference computes in float64 and rounds once."""

    rows: int
    channels: int
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        x = inputs[0].reshape(self.rows, self.channels).astype(np.float64)
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return [(powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)]
