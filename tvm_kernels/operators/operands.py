"""The storages of tensors between kernels.

Float   float32, real numbers. Spatial tensors are channels last: [batch, height, width, channels].
Codes   uint8, same shape; the level of a byte is `byte - zero_point` (0 for unsigned, 128 for signed int8).
Bits    uint32 [..., ceil(channels / 32)], 32 binary values a word, least significant first; bit 1 is +1, bit 0 is -1;
        unused bits of the last word are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]
Kind = Literal["float", "codes", "bits"]
WORD = 32  # bits


@dataclass(frozen=True)
class Float:
    """float32 storage."""

    dtype = "float32"
    kind: ClassVar[Kind] = "float"
    format = "float32"
    integer = False
    largest = float("inf")
    bits = 32.0
    pad = zero_point = channels = 0

    def levels(self, stored: Array) -> Array:
        """The values of a stored tensor, float32."""
        return np.asarray(stored, np.float32)


@dataclass(frozen=True)
class Codes:
    """uint8 storage of integer levels low..high; level = byte - zero_point."""

    low: int
    high: int
    zero_point: int = 0
    dtype = "uint8"
    kind: ClassVar[Kind] = "codes"
    integer = True
    bits = 8.0
    pad = channels = 0  # pad: the level of padding

    @property
    def largest(self) -> int:
        """The largest absolute level."""
        return max(abs(self.low), abs(self.high))

    @property
    def format(self) -> str:
        """The name of the format in reports."""
        return "uint8" if self.low >= 0 else "int8"

    def levels(self, stored: Array) -> Array:
        """The values of a stored tensor, int32."""
        return stored.astype(np.int32) - self.zero_point


@dataclass(frozen=True)
class Bits:
    """uint32 storage of binary values packed along the last axis of `channels` elements."""

    channels: int
    dtype = "uint32"
    kind: ClassVar[Kind] = "bits"
    format = "binary"
    integer = True
    bits = 1.0
    largest = pad = 1
    zero_point = 0

    def levels(self, stored: Array) -> Array:
        """The values of a stored tensor, int32 -1 and +1."""
        words = np.ascontiguousarray(stored, "<u4").view(np.uint8)
        bits = np.unpackbits(words, axis=-1, bitorder="little")[..., : self.channels].astype(np.int32)
        return np.asarray(2 * bits - 1)


Storage = Float | Codes | Bits


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """A float32 constant as the right operand of a product."""

    values: Array


def constant(values: Any) -> Array:
    """A constant of an epilogue's step as float32; a scalar becomes [1]."""
    return np.atleast_1d(np.asarray(values, np.float32))
