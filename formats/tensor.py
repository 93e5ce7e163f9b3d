"""A low-bit tensor: packed codes, their format, and the scales that make them real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError
from subbyte.formats.format import Format
from subbyte.formats.granularity import Granularity
from subbyte.formats.packing import pack, packed_length, unpack

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class LowBitTensor:
    """A tensor of `shape` held as packed codes: value = (level - zero_point) x scale.

    The payload is uint8 [shape[0], ceil(prod(shape[1:]) * code_bits / 8)]: one packed row for each output channel, the
    reduction axes flattened in C order. `scale` is float32 of `granularity.scale_shape(matrix_shape)`: granularity
    speaks of the flattened shape (shape[0], prod(shape[1:])). `zero_point` is None or int32 shaped like the scale.
    """

    format: Format
    shape: tuple[int, ...]
    packed: npt.NDArray[np.uint8]
    scale: Float32
    granularity: Granularity
    zero_point: Int32 | None = None

    def __post_init__(self) -> None:
        if not self.shape:
            raise FormatError("a low-bit tensor needs at least one axis")
        want = (self.shape[0], packed_length(self.depth, self.format.code_bits))
        if self.packed.dtype != np.uint8 or self.packed.shape != want:
            raise FormatError(f"payload is {self.packed.dtype} {self.packed.shape}, expected uint8 {want}")
        scales = self.granularity.scale_shape(self.matrix_shape)
        if self.scale.shape != scales:
            raise FormatError(f"scale has shape {self.scale.shape}, expected {scales} for {self.granularity}")
        if self.zero_point is not None and self.zero_point.shape != scales:
            raise FormatError(f"zero point has shape {self.zero_point.shape}, expected {scales}")

    @classmethod
    def from_levels(
        cls,
        fmt: Format,
        levels: npt.ArrayLike,
        scale: npt.ArrayLike,
        granularity: Granularity,
        zero_point: npt.ArrayLike | None = None,
    ) -> LowBitTensor:
        """Encode and pack integer levels of any shape; raises FormatError for a level that the format lacks."""
        array = np.asarray(levels)
        if array.ndim == 0:
            raise FormatError("a low-bit tensor needs at least one axis")
        rows = array.shape[0]
        depth = int(np.prod(array.shape[1:]))
        packed = pack(fmt.encode(array.reshape(rows, depth)), fmt.code_bits)
        zero = None if zero_point is None else np.asarray(zero_point, np.int32)
        return cls(fmt, array.shape, packed, np.asarray(scale, np.float32), granularity, zero)

    @property
    def depth(self) -> int:
        """Elements in one row: the length of the reduction."""
        return int(np.prod(self.shape[1:]))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape with the reduction axes flattened: (shape[0], depth)."""
        return (self.shape[0], self.depth)

    def levels(self) -> Int32:
        """The integer levels, int32 of `shape`; raises FormatError when the payload holds an impossible code."""
        return self.format.decode(unpack(self.packed, self.format.code_bits, self.depth)).reshape(self.shape)

    def dequantize(self) -> Float32:
        """The real values, float32 of `shape`: (level - zero_point) x scale."""
        levels = self.levels().reshape(self.matrix_shape)
        if self.zero_point is not None:
            levels = levels - self.granularity.expand(self.zero_point, self.matrix_shape)
        scale = self.granularity.expand(self.scale, self.matrix_shape)
        return (levels.astype(np.float32) * scale).astype(np.float32).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, the scales and the zero points."""
        return self.packed.nbytes + self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and padding included."""
        return 8 * self.nbytes / max(1, int(np.prod(self.shape)))
