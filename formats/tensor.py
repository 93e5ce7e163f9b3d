"""A low-bit tensor: codes of a format, and the scales that make them real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError
from subbyte.formats.format import Format
from subbyte.formats.granularity import Granularity, PerChannel, PerTensor
from subbyte.formats.payload import Payload

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LowBitTensor:
    """A tensor of `shape` held as codes: value = (level - zero_point) x scale. Real levels have no zero point.

    One packed row for each output channel, which is axis 0; the others are the reduction. `scale` is float32 of
    `granularity.scale_shape(matrix_shape)`: granularity speaks of the flattened shape (shape[0], prod(shape[1:])).
    `zero_point` is None or int32 shaped like the scale.
    """

    payload: Payload
    scale: Float32
    granularity: Granularity
    zero_point: Int32 | None = None

    def __post_init__(self) -> None:
        scales = self.granularity.scale_shape(self.matrix_shape)
        if self.scale.shape != scales:
            raise FormatError(f"scale has shape {self.scale.shape}, expected {scales} for {self.granularity}")
        if self.zero_point is not None and self.zero_point.shape != scales:
            raise FormatError(f"zero point has shape {self.zero_point.shape}, expected {scales}")
        if self.zero_point is not None and not self.format.levels.integer:
            raise FormatError(f"{self.format.name} has real levels, which have no zero point; leave it out")

    @classmethod
    def from_levels(
        cls,
        fmt: Format,
        levels: npt.ArrayLike,
        scale: npt.ArrayLike,
        granularity: Granularity,
        zero_point: npt.ArrayLike | None = None,
    ) -> LowBitTensor:
        """Encode levels of any shape; raises FormatError for a level that the format lacks."""
        array = np.asarray(levels)
        zero = None if zero_point is None else np.asarray(zero_point, np.int32)
        payload = Payload(fmt, array.shape, codes=fmt.encode(array), levels=array.astype(fmt.dtype))
        return cls(payload, np.asarray(scale, np.float32), granularity, zero)

    @classmethod
    def from_packed(
        cls, fmt: Format, shape: Sequence[int], packed: UInt8, scale: npt.ArrayLike, granularity: Granularity
    ) -> LowBitTensor:
        """A tensor of packed rows, uint8 [shape[0], bytes]; raises FormatError where they do not fit the shape."""
        return cls(Payload(fmt, shape, packed=packed), np.asarray(scale, np.float32), granularity)

    @property
    def format(self) -> Format:
        return self.payload.format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.payload.shape

    @property
    def depth(self) -> int:
        """Elements in one row: the length of the reduction."""
        return self.payload.depth

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape with the reduction axes flattened: (shape[0], depth)."""
        return (self.shape[0], self.depth)

    @property
    def packed(self) -> UInt8:
        """The packed codes: uint8 [shape[0], ceil(depth * code_bits / 8)]."""
        return self.payload.packed

    def check(self) -> None:
        """Raise FormatError when a code has no level, or bits behind a packed row are not zero."""
        _ = self.payload.levels

    def levels(self) -> npt.NDArray[Any]:
        """The levels, int32 or float32 of `shape`; raises FormatError when the payload holds an impossible code."""
        return self.payload.levels.astype(self.format.levels.values.dtype)

    def integers(self) -> Int32:
        """What an integer product multiplies, level - zero_point: int32 of `shape`; FormatError for real levels."""
        return self.compact_integers.astype(np.int32)

    @property
    def compact_integers(self) -> npt.NDArray[Any]:
        """`integers`, to read alone: without zero points the levels as they are held, of `format.dtype`."""
        _ = self.format.integer_levels  # or there are none
        return self._unscaled

    def sums(self, size: int) -> npt.NDArray[np.int64]:
        """The sums of `integers` over each `size` elements of a row, int64 [rows, groups]; the last may be of fewer."""
        rows = self.compact_integers.reshape(self.matrix_shape)
        whole = self.depth // size * size
        sums = rows[:, :whole].reshape(self.shape[0], -1, size).sum(axis=2, dtype=np.int64)
        rest = rows[:, whole:].sum(axis=1, keepdims=True, dtype=np.int64)
        return np.concatenate([sums, rest], axis=1) if whole < self.depth else sums

    @cached_property
    def limits(self) -> tuple[int, int]:
        """The least and the largest of `integers`; (0, 0) of none."""
        found = self.compact_integers
        return (int(found.min()), int(found.max())) if found.size else (0, 0)

    @property
    def largest(self) -> int:
        """The largest absolute value of `integers`."""
        return max(map(abs, self.limits))

    @property
    def _unscaled(self) -> npt.NDArray[Any]:
        levels = self.payload.levels
        return levels if self.zero_point is None else levels.astype(np.int32) - self._expanded(self.zero_point)

    def unscaled(self) -> Float32:
        """What the scale multiplies, level - zero_point: float32 of `shape`."""
        return self._unscaled.astype(np.float32)

    def dequantize(self) -> Float32:
        """The real values, float32 of `shape`: (level - zero_point) x scale."""
        return np.asarray(self.unscaled() * self._expanded(self.scale), np.float32)

    def _expanded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A scale or zero point for each element."""
        return self.granularity.expand(values, self.matrix_shape).reshape(self.shape)

    # ---- the same elements, moved ----

    def reshape(self, shape: Sequence[int]) -> LowBitTensor:
        """The same elements, in C order, in another shape; raises FormatError where its scales would no longer fit."""
        return replace(self, payload=self.payload.reshape(shape))

    def transpose(self, axes: Sequence[int]) -> LowBitTensor:
        """The same elements with their axes in that order; raises FormatError where its scales would no longer fit."""
        payload = self.payload.transpose(axes)
        by_row = self.granularity == PerChannel(0) and axes[0] == 0
        if payload is not self.payload and self.scale.ndim and not by_row:
            raise FormatError(f"scales by {self.granularity.name} do not follow axes in the order {list(axes)}")
        return replace(self, payload=payload)

    def without_scale(self) -> LowBitTensor:
        """The same levels with scale 1, for scales that stand behind a product; one zero point for all stays."""
        zero = None if self.zero_point is None else self.zero_point.reshape(())
        return LowBitTensor(self.payload, np.ones((), np.float32), PerTensor(), zero)

    # ---- size ----

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, the scales and the zero points."""
        rest = 0 if self.zero_point is None else self.zero_point.nbytes
        return prod(self.payload.packed_shape) + self.scale.nbytes + rest

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and padding included."""
        return 8 * self.nbytes / max(1, prod(self.shape))
