"""The levels of a format: the number that each code represents. Real levels are only multiplied in float32.

    IntegerLine(-8, 7)                   all integers of a range; codes are their lowest bits (two's complement)
    IntegerTable((-1, 0, 1))             integers, indexed by code
    RealTable((-1.0, -0.25, 0.25, 1.0))  real numbers, indexed by code: a codebook

Bits, number of codes and dtype follow from the levels. A code without a level has None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError

Array = npt.NDArray[Any]
Table = tuple[int | None, ...] | tuple[float | None, ...]

INTEGERS = (np.int8, np.uint8, np.int16, np.int32)
LARGEST_LEVEL = 1 << 16  # with 8-bit activations, a sum of 128 such products overflows int32


class Levels(ABC):
    """The levels of all codes of a format. `integer`: whether they are integers, as integer products need."""

    integer: ClassVar[bool]

    @property
    @abstractmethod
    def table(self) -> Table:
        """The level of each of the 2**code_bits codes; None for a code without a level."""

    @property
    def code_bits(self) -> int:
        """Bits of a code, 1 to 8."""
        return len(self.table).bit_length() - 1

    @cached_property
    def by_code(self) -> Array:
        """The level of each code, 0 where it has none: the smallest integer dtype that holds all, or float32."""
        values = [0 if level is None else level for level in self.table]
        if not self.integer:
            return np.array(values, np.float32)
        fits = (t for t in INTEGERS if np.iinfo(t).min <= min(values) and max(values) <= np.iinfo(t).max)
        return np.array(values, next(fits))

    @cached_property
    def values(self) -> Array:
        """All levels in ascending order, int32 or float32."""
        known = sorted(level for level in self.table if level is not None)
        return np.array(known, np.int32 if self.integer else np.float32)

    @cached_property
    def largest(self) -> int | float:
        """The largest absolute level."""
        most = np.abs(self.values).max()
        return int(most) if self.integer else float(most)

    @cached_property
    def _codes(self) -> npt.NDArray[np.int16]:
        """The code of each of `values`."""
        by_level = {level: code for code, level in enumerate(self.table) if level is not None}
        return np.array([by_level[level] for level in self.values.tolist()], np.int16)

    def codes_of(self, levels: Array) -> npt.NDArray[np.int16]:
        """The code of each level, int16; -1 for a number that is not a level."""
        levels = np.asarray(levels, self.values.dtype)
        index = np.searchsorted(self.values, levels).clip(max=len(self.values) - 1)
        return np.asarray(np.where(self.values[index] == levels, self._codes[index], -1), np.int16)

    def nearest(self, values: npt.ArrayLike) -> Array:
        """The level nearest to each value; ties to the smaller level; NaN to the largest."""
        exact = self.values.astype(np.float64)
        index = np.searchsorted((exact[1:] + exact[:-1]) / 2, np.asarray(values, np.float64))
        return np.asarray(self.values[index])


class IntegerLevels(Levels):
    """Integer levels."""

    integer = True

    @cached_property
    def line(self) -> tuple[int, int] | None:
        """(first, step) if the level of every code is first + step x code, else None."""
        first, second = (int(level) for level in self.by_code[:2])
        step = second - first
        affine = all(level is None or level == first + step * code for code, level in enumerate(self.table))
        return (first, step) if affine else None

    @cached_property
    def twos_complement(self) -> bool:
        """Whether every code is the two's complement representation of its level."""
        half = len(self.table) // 2
        return all(level is None or level == (code ^ half) - half for code, level in enumerate(self.table))

    @cached_property
    def _by_level(self) -> npt.NDArray[np.int16]:
        """Codes indexed by level, -1 for a number that is not a level; negative levels index from the end."""
        codes = np.full(2 * int(self.largest) + 1, -1, np.int16)
        codes[self.values] = self._codes
        return codes

    def codes_of(self, levels: Array) -> npt.NDArray[np.int16]:
        low, high = self.values[0], self.values[-1]
        if levels.size and (levels.min() < low or levels.max() > high):
            inside = (levels >= low) & (levels <= high)
            return np.where(inside, self._by_level[np.where(inside, levels, low)], np.int16(-1))
        return self._by_level[levels]


@dataclass(frozen=True)
class IntegerLine(IntegerLevels):
    """Every integer from `low` to `high`; a code is the lowest bits of its level."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for level in (self.low, self.high):
            _check_integer(level)
        if not self.low <= self.high < self.low + 256:
            raise FormatError(f"levels from {self.low} to {self.high}: expected 1 to 256 integers, the lowest first")
        _check_size(self.low)
        _check_size(self.high)

    @cached_property
    def table(self) -> tuple[int | None, ...]:
        count = 1 << max(1, (self.high - self.low).bit_length())
        levels = (self.low + (code - self.low) % count for code in range(count))
        return tuple(level if level <= self.high else None for level in levels)

    def codes_of(self, levels: Array) -> npt.NDArray[np.int16]:
        if levels.size and (levels.min() < self.low or levels.max() > self.high):
            return super().codes_of(levels)
        return np.bitwise_and(levels, len(self.table) - 1, dtype=np.int16, casting="unsafe")


@dataclass(frozen=True)
class IntegerTable(IntegerLevels):
    """An integer for each code; None for a code without a level, as for all codes after the last entry."""

    levels: tuple[int | None, ...]

    def __post_init__(self) -> None:
        for level in self.levels:
            if level is not None:
                _check_integer(level)
            _check_size(level or 0)
        _check_distinct(self.levels)

    @cached_property
    def table(self) -> tuple[int | None, ...]:
        return _padded(tuple(None if level is None else int(level) for level in self.levels))


@dataclass(frozen=True)
class RealTable(Levels):
    """A float32 number for each code; None for a code without a level, as for all codes after the last entry."""

    levels: tuple[float | None, ...]
    integer = False

    def __post_init__(self) -> None:
        for level in self.levels:
            # Levels that float32 rounds to infinity are refused, too; the comparison is False for NaN.
            if level is not None and not (
                isinstance(level, (int, float, np.floating)) and abs(level) <= float(np.finfo(np.float32).max)
            ):
                raise FormatError(
                    f"level {level!r}: expected a finite number of float32, or None for a code without a level"
                )
        _check_distinct(tuple(None if level is None else float(np.float32(level)) for level in self.levels))

    @cached_property
    def table(self) -> tuple[float | None, ...]:
        return _padded(tuple(None if level is None else float(np.float32(level)) for level in self.levels))


def _check_integer(level: object) -> None:
    """Decoders and kernels would truncate a real level to an integer."""
    if not isinstance(level, (int, np.integer)) or isinstance(level, bool):
        raise FormatError(
            f"level {level!r} is {type(level).__name__}, expected an integer: use a RealTable for real levels, "
            "or divide them by the smallest one and multiply the scale by it (formats/power_of_two.py)"
        )


def _check_size(level: int) -> None:
    if abs(level) > LARGEST_LEVEL:
        raise FormatError(f"level {level}: expected at most {LARGEST_LEVEL} in magnitude; use a larger scale")


def _check_distinct(levels: tuple[float | None, ...]) -> None:
    known = [level for level in levels if level is not None]
    if len(set(known)) != len(known) or not known:
        raise FormatError(f"levels {known[:20]}: expected at least one level, and exactly one code for each")
    if len(levels) > 256:
        raise FormatError(f"{len(levels)} codes, expected at most 256: a code has at most 8 bits")


def _padded(levels: tuple[Any, ...]) -> tuple[Any, ...]:
    """Extended with None to a power of two."""
    bits = max(1, (len(levels) - 1).bit_length())
    return (*levels, *[None] * ((1 << bits) - len(levels)))


BINARY_LEVELS = IntegerTable((-1, 1))  # the levels of binary values
