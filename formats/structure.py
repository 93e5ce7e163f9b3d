"""A weight made of several low-bit tensors: its parts, and how they combine. `dequantize` is the reference.

    Structure(planes, Sum())                         binary planes, each with its own scales, summed
    Structure((binary, int4), SelectColumns(index))  some columns in one format, the others in another

A structure is an operand of a product (tvm_kernels/operators/product.py); one without a kernel row is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError
from subbyte.formats.tensor import LowBitTensor

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class Combine(Protocol):
    """How parts become one tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes stored in addition to the parts."""

    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        """The shape of the combined tensor; raises FormatError when the shapes of the parts do not match."""

    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        """The real values of the combined tensor, float32."""


@dataclass(frozen=True)
class Sum:
    """Parts of equal shape, added in order: value = sum over parts m of scale_m x level_m."""

    nbytes = 0

    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        for number, part in enumerate(parts):
            if part.shape != parts[0].shape:
                raise FormatError(f"part {number} has shape {part.shape}, expected that of part 0, {parts[0].shape}")
        return parts[0].shape

    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        return reduce(np.add, (part.dequantize() for part in parts))


@dataclass(frozen=True, eq=False)
class SelectColumns:
    """Column k of a matrix [rows, columns] is the next column of part `index[k]`; `index` is uint8 [columns]."""

    index: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.index.nbytes

    def shape(self, parts: Sequence[LowBitTensor]) -> Shape:
        if self.index.dtype != np.uint8 or self.index.ndim != 1:
            raise FormatError(f"index is {self.index.dtype} {self.index.shape}, expected uint8 [columns]")
        if self.index.size and self.index.max() >= len(parts):
            raise FormatError(f"index has part {self.index.max()}, expected 0 to {len(parts) - 1}")
        for number, part in enumerate(parts):
            expected = (parts[0].shape[0], int((self.index == number).sum()))
            if part.shape != expected:
                raise FormatError(f"part {number} has shape {part.shape}, expected {expected} by the index")
        return parts[0].shape[0], self.index.size

    def values(self, parts: Sequence[LowBitTensor]) -> Float32:
        values = np.empty(self.shape(parts), np.float32)
        for number, part in enumerate(parts):
            values[:, self.index == number] = part.dequantize()
        return values


@dataclass(frozen=True, eq=False)
class Structure:
    """A weight of several parts; raises FormatError when their shapes do not match."""

    parts: tuple[LowBitTensor, ...]
    combine: Combine

    def __post_init__(self) -> None:
        if not self.parts:
            raise FormatError("a structure has no parts; give at least one low-bit tensor")
        self.combine.shape(self.parts)

    @property
    def shape(self) -> Shape:
        return self.combine.shape(self.parts)

    @property
    def name(self) -> str:
        """In reports: "Sum(binary, binary)"."""
        return f"{type(self.combine).__name__}({', '.join(part.format.name for part in self.parts)})"

    def dequantize(self) -> Float32:
        """The real values, float32 of `shape`: the reference."""
        return self.combine.values(self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts and of `combine`."""
        return sum(part.nbytes for part in self.parts) + self.combine.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and padding included."""
        return 8 * self.nbytes / max(1, prod(self.shape))
