"""A low-bit tensor: codes of a format, with their scales and zero points."""

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
from subbyte.formats.granularity import Granularity, PerChannel, PerGroup, PerTensor
from subbyte.formats.payload import Payload

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LowBitTensor:
    """A tensor of `shape` stored as codes: value = (level - zero_point) x scale. Real levels have no zero point.

    Axis 0 is the output channel, each one packed row; the other axes are reduced. `scale` is float32 of
    `granularity.scale_shape(matrix_shape)`: the granularity applies to the flattened shape (shape[0], prod(shape[1:])).
    `zero_point` is None or int32 of the shape of the scale.
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
            raise FormatError(f"{self.format.name} has real levels, which have no zero point; omit it")

    @classmethod
    def from_levels(
        cls,
        fmt: Format,
        levels: npt.ArrayLike,
        scale: npt.ArrayLike,
        granularity: Granularity,
        zero_point: npt.ArrayLike | None = None,
    ) -> LowBitTensor:
        """Encode levels of any shape; raises FormatError for a number that is not a level of the format."""
        array = np.asarray(levels)
        zero = None if zero_point is None else np.asarray(zero_point, np.int32)
        payload = Payload(fmt, array.shape, codes=fmt.encode(array), levels=array.astype(fmt.dtype))
        return cls(payload, np.asarray(scale, np.float32), granularity, zero)

    @classmethod
    def from_packed(
        cls, fmt: Format, shape: Sequence[int], packed: UInt8, scale: npt.ArrayLike, granularity: Granularity
    ) -> LowBitTensor:
        """From packed rows, uint8 [shape[0], bytes]; raises FormatError when they do not match the shape."""
        return cls(Payload(fmt, shape, packed=packed), np.asarray(scale, np.float32), granularity)

    @property
    def format(self) -> Format:
        return self.payload.format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.payload.shape

    @property
    def depth(self) -> int:
        """Elements per row: the length of the reduction."""
        return self.payload.depth

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape with the reduction axes flattened: (shape[0], depth)."""
        return (self.shape[0], self.depth)

    @property
    def group_size(self) -> int:
        """Elements of a row that share a scale; 0 for one scale per row or tensor."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else 0

    @property
    def packed(self) -> UInt8:
        """The packed codes: uint8 [shape[0], ceil(depth * code_bits / 8)]."""
        return self.payload.packed

    def check(self) -> None:
        """Raise FormatError for a code without a level, or padding bits that are not zero."""
        _ = self.payload.levels

    def levels(self) -> npt.NDArray[Any]:
        """The levels, int32 or float32 of `shape`; raises FormatError for a code without a level."""
        return self.payload.levels.astype(self.format.levels.values.dtype)

    def integers(self) -> Int32:
        """The integer factors of a product, level - zero_point: int32 of `shape`; FormatError for real levels."""
        return self.compact_integers.astype(np.int32)

    @property
    def compact_integers(self) -> npt.NDArray[Any]:
        """`integers`, read-only, in `format.dtype` if there is no zero point, else int32."""
        _ = self.format.integer_levels  # raises for real levels
        return self._unscaled

    def sums(self, size: int) -> npt.NDArray[np.int64]:
        """Sums of `integers` over groups of `size` elements of a row, int64 [rows, groups]; the last may be shorter."""
        rows = self.compact_integers.reshape(self.matrix_shape)
        full = self.depth // size * size
        sums = rows[:, :full].reshape(self.shape[0], -1, size).sum(axis=2, dtype=np.int64)
        rest = rows[:, full:].sum(axis=1, keepdims=True, dtype=np.int64)
        return np.concatenate([sums, rest], axis=1) if full < self.depth else sums

    @cached_property
    def limits(self) -> tuple[int, int]:
        """Minimum and maximum of `integers`; (0, 0) of an empty tensor."""
        integers = self.compact_integers
        return (int(integers.min()), int(integers.max())) if integers.size else (0, 0)

    @property
    def largest(self) -> int:
        """The largest absolute value of `integers`."""
        return max(map(abs, self.limits))

    @property
    def _unscaled(self) -> npt.NDArray[Any]:
        levels = self.payload.levels
        return levels if self.zero_point is None else levels.astype(np.int32) - self._expanded(self.zero_point)

    def unscaled(self) -> Float32:
        """The values before the scale, level - zero_point: float32 of `shape`."""
        return self._unscaled.astype(np.float32)

    def dequantize(self) -> Float32:
        """The real values, float32 of `shape`: (level - zero_point) x scale."""
        return np.asarray(self.unscaled() * self._expanded(self.scale), np.float32)

    def _expanded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Scales or zero points, expanded to `shape`."""
        return self.granularity.expand(values, self.matrix_shape).reshape(self.shape)

    # ---- data movement ----

    def reshape(self, shape: Sequence[int]) -> LowBitTensor:
        """The same elements, in C order, in another shape; raises FormatError when the scales do not fit it."""
        return replace(self, payload=self.payload.reshape(shape))

    def transpose(self, axes: Sequence[int]) -> LowBitTensor:
        """The tensor with permuted axes; raises FormatError when the scales cannot be permuted with them."""
        payload = self.payload.transpose(axes)
        by_row = self.granularity == PerChannel(0) and axes[0] == 0
        if payload is not self.payload and self.scale.ndim and not by_row:
            raise FormatError(f"scales per {self.granularity.name} cannot be transposed by {list(axes)}")
        return replace(self, payload=payload)

    def with_scales_of_rows(self) -> LowBitTensor:
        """The same tensor with scales per channel, if every group is one row."""
        if not self.group_size or self.scale.shape[1] != 1:
            return self
        zero = None if self.zero_point is None else self.zero_point.reshape(-1)
        return LowBitTensor(self.payload, self.scale.reshape(-1), PerChannel(0), zero)

    def without_scale(self) -> LowBitTensor:
        """The same levels with scale 1, for scales applied after the product; a zero point must be per tensor."""
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
