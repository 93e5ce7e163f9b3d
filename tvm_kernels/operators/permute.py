"""Axes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator


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

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        made = []
        for shape, perm in (((17, 16), (1, 0)), ((1, 3, 9, 7), (0, 2, 3, 1)), ((5, 2, 3), (0, 2, 1))):
            floats, codes = random.normal(size=shape).astype(np.float32), random.integers(0, 256, shape, np.uint8)
            name = f"permute {shape} by {perm}"
            made.append(Example(cls(name, shape, perm), (floats,)))
            made.append(Example(cls(f"{name} of codes", shape, perm, "uint8"), (codes,)))
        return made
