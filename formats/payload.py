"""The codes of a tensor, unpacked (one per byte) or packed. Each is computed from the other on first use, and cached.

Transposes and reshapes are applied to the codes, as NumPy views where possible, without packing them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError
from subbyte.formats.format import Format
from subbyte.formats.packing import pack, packed_length, unpack

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]
Shape = tuple[int, ...]


class Payload:
    """Codes of `format` in a tensor of `shape`, packed by rows: the first axis indexes rows.

    packed: uint8 [shape[0], ceil(prod(shape[1:]) * code_bits / 8)], the other axes flattened in C order.
    """

    def __init__(
        self,
        fmt: Format,
        shape: Sequence[int],
        *,
        codes: UInt8 | None = None,
        packed: UInt8 | None = None,
        levels: Array | None = None,
    ) -> None:
        """From packed rows, or from codes and, if known, their levels.

        Raises FormatError for another shape or dtype.
        """
        self.format, self.shape = fmt, tuple(shape)
        if not self.shape:
            raise FormatError("a low-bit tensor needs at least one axis")
        self._codes, self._packed, self._levels = codes, packed, levels
        given, expected = (codes, self.shape) if packed is None else (packed, self.packed_shape)
        if given is None or given.dtype != np.uint8 or given.shape != expected:
            got = "missing" if given is None else f"{given.dtype} {given.shape}"
            raise FormatError(f"payload is {got}, expected uint8 {expected} of {fmt.name} codes in shape {self.shape}")

    @property
    def depth(self) -> int:
        """Elements in one row."""
        return prod(self.shape[1:])

    @property
    def packed_shape(self) -> tuple[int, int]:
        """(rows, bytes per row)."""
        return self.shape[0], packed_length(self.depth, self.format.code_bits)

    @property
    def codes(self) -> UInt8:
        """uint8 of `shape`, read-only; raises FormatError when padding bits of a packed row are not zero."""
        if self._codes is None:
            assert self._packed is not None
            self._codes = unpack(self._packed, self.format.code_bits, self.depth).reshape(self.shape)
        return self._codes

    @property
    def packed(self) -> UInt8:
        """The packed rows, read-only."""
        if self._packed is None:
            assert self._codes is not None
            self._packed = pack(self._codes.reshape(self.shape[0], self.depth), self.format.code_bits)
        return self._packed

    @property
    def levels(self) -> Array:
        """The levels, `format.dtype` of `shape`, read-only; raises FormatError for a code without a level."""
        if self._levels is None:
            self._levels = self.format.decode(self.codes)
        return self._levels

    def transpose(self, axes: Sequence[int]) -> Payload:
        """The tensor with permuted axes; raises FormatError when `axes` is not a permutation."""
        if sorted(axes) != list(range(len(self.shape))):
            raise FormatError(f"{list(axes)} is not a permutation of the axes of {list(self.shape)}")
        if tuple(axes) == tuple(range(len(self.shape))):
            return self
        return self._mapped(lambda array: np.transpose(array, axes))

    def reshape(self, shape: Sequence[int]) -> Payload:
        """The same elements, in C order, in another shape; raises FormatError when the number of elements differs."""
        if prod(shape) != prod(self.shape):
            raise FormatError(f"{list(self.shape)} has {prod(self.shape)} elements, {list(shape)} has {prod(shape)}")
        if self._codes is None and tuple(shape[:1]) == self.shape[:1]:
            return Payload(self.format, shape, packed=self._packed)
        return self._mapped(lambda array: array.reshape(shape))

    def take(self, order: npt.NDArray[np.intp]) -> Payload:
        """[rows, depth]: the elements of each row in that order."""
        return self._mapped(lambda array: array.reshape(self.shape[0], self.depth)[:, order])

    def _mapped(self, function: Callable[[Array], Array]) -> Payload:
        """The payload with a data movement applied to codes and levels."""
        codes = function(self.codes)
        levels = None if self._levels is None else function(self._levels)
        return Payload(self.format, codes.shape, codes=codes, levels=levels)
