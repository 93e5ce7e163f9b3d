"""A range check of run-time indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from subbyte.errors import InputError
from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator

Index = Literal["int32", "int64"]


@dataclass(frozen=True, eq=False)
class CheckIndices(Operator):
    """Indices int32 or int64 [count] to int32 counted from the start: element i in 0 .. sizes[i % len(sizes)] - 1.

    With `negative`, -1 is the last element of an axis, as in ONNX. Any other index fails the run.
    """

    count: int
    sizes: tuple[int, ...]
    dtype: Index
    negative: bool = True
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        given = inputs[0].reshape(-1)
        size = np.resize(np.array(self.sizes, np.int64), given.size)
        lowest = -size if self.negative else 0 * size
        wrong = np.flatnonzero((given < lowest) | (given >= size))
        if wrong.size:
            at = int(wrong[0])
            raise InputError(
                f"operator '{self.name}': index {given[at]}, element {at} of its indices, is out of range; "
                f"expected {lowest[at]} .. {size[at] - 1}"
            )
        return [np.where(given < 0, given + size, given).astype(np.int32)]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        made, sizes = [], (7, 300)
        for dtype in get_args(Index):
            given = random.integers(-np.array(sizes), sizes, (21, 2)).astype(dtype)
            made.append(Example(cls(f"indices {dtype}", given.size, sizes, dtype), (given,)))
        return made
