"""Axes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Operator


@dataclass(frozen=True, eq=False)
class Permute(Operator):
    """numpy.transpose(x, perm) of a tensor of `shape`; float32, or uint8 for codes."""

    shape: tuple[int, ...]
    perm: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        return [np.transpose(inputs[0].reshape(self.shape), self.perm)]
