"""The levels of a format: the number that each code stands for. Their type says what products they may enter.

    IntegerLine(-8, 7)                   every integer of a range, by two's complement codes
    IntegerTable((-1, 0, 1))             integers by code
    RealTable((-1.0, -0.25, 0.25, 1.0))  real numbers by code, a codebook: products of floats alone

Bits, number of codes and dtype follow from them. A code that stands for nothing is None.
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
LARGEST_LEVEL = 1 << 16  # with activations of 8 bits, sums of 128 such products leave int32


class Levels(ABC):
    """What every kind of levels has; `integer` says whether they may enter a product of integers."""

    integer: ClassVar[bool]

    @property
    @abstractmethod
    def table(self) -> Table:
        """The level of each of the 2**code_bits codes, or None."""

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
        """All levels, ascending: int32 or float32."""
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
        """The code of each level, int16; -1 where there is no such level."""
        levels = np.asarray(levels, self.values.dtype)
        place = np.searchsorted(self.values, levels).clip(max=len(self.values) - 1)
        return np.asarray(np.where(self.values[place] == levels, self._codes[place], -1), np.int16)

    def nearest(self, values: npt.ArrayLike) -> Array:
        """The level nearest to each value, of two equally near the smaller; NaN becomes the largest."""
        exact = self.values.astype(np.float64)
        place = np.searchsorted((exact[1:] + exact[:-1]) / 2, np.asarray(values, np.float64))
        return np.asarray(self.values[place])


class IntegerLevels(Levels):
    """Levels that are integers."""

    integer = True

    @cached_property
    def line(self) -> tuple[int, int] | None:
        """(first, step) where the level of every code is first + step x code."""
        first, second = (int(level) for level in self.by_code[:2])
        step = second - first
        along = all(level is None or level == first + step * code for code, level in enumerate(self.table))
        return (first, step) if along else None

    @cached_property
    def twos_complement(self) -> bool:
        """Whether codes are the signed integers of their bits."""
        half = len(self.table) // 2
        return all(level is None or level == (code ^ half) - half for code, level in enumerate(self.table))

    @cached_property
    def _by_level(self) -> npt.NDArray[np.int16]:
        """The code of each level, -1 where there is no such level; negative levels index from the end."""
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
        if not self.low <= self.high < self.low + 256:
            raise FormatError(f"levels from {self.low} to {self.high}: expected 1 to 256 integers, the lowest first")
        _check_size(self.low)
        _check_size(self.high)

    @cached_property
    def table(self) -> tuple[int | None, ...]:
        count = 1 << max(1, (self.high - self.low).bit_length())
        levels = (self.low + (code - self.low) % count for code in range(count))
        return tuple(level if level <= self.high else None for level in levels)


@dataclass(frozen=True)
class IntegerTable(IntegerLevels):
    """An integer for each code; None, also after the last, where a code stands for nothing."""

    levels: tuple[int | None, ...]

    def __post_init__(self) -> None:
        for level in self.levels:
            # A real level would be cut to an integer by every decoder and kernel.
            if level is not None and (not isinstance(level, (int, np.integer)) or isinstance(level, bool)):
                raise FormatError(
                    f"level {level!r} is {type(level).__name__}, expected an integer: real levels are a RealTable, or "
                    "integers relative to the smallest one, which belongs to the scale (formats/power_of_two.py)"
                )
            _check_size(level or 0)
        _check_distinct(self.levels)

    @cached_property
    def table(self) -> tuple[int | None, ...]:
        return _padded(tuple(None if level is None else int(level) for level in self.levels))


@dataclass(frozen=True)
class RealTable(Levels):
    """A float32 number for each code; None, also after the last, where a code stands for nothing."""

    levels: tuple[float | None, ...]
    integer = False

    def __post_init__(self) -> None:
        for level in self.levels:
            if level is not None and (not isinstance(level, (int, float, np.floating)) or not np.isfinite(level)):
                raise FormatError(f"level {level!r} is no finite number; a code without a level is None")
        _check_distinct(tuple(None if level is None else float(np.float32(level)) for level in self.levels))

    @cached_property
    def table(self) -> tuple[float | None, ...]:
        return _padded(tuple(None if level is None else float(np.float32(level)) for level in self.levels))


def _check_size(level: int) -> None:
    if abs(level) > LARGEST_LEVEL:
        raise FormatError(f"level {level} is beyond {LARGEST_LEVEL}; make the scale larger")


def _check_distinct(levels: tuple[float | None, ...]) -> None:
    known = [level for level in levels if level is not None]
    if len(set(known)) != len(known) or not known:
        raise FormatError("every level needs exactly one code, and there is at least one")
    if len(levels) > 256:
        raise FormatError(f"{len(levels)} codes, expected at most 256: a code has 8 bits at most")


def _padded(levels: tuple[Any, ...]) -> tuple[Any, ...]:
    """A level or None for every code of so many bits."""
    bits = max(1, (len(levels) - 1).bit_length())
    return (*levels, *[None] * ((1 << bits) - len(levels)))


SIGNS = IntegerTable((-1, 1))  # what a bit stands for
