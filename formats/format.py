"""What a low-bit format is, and the registry of formats by name.

A format is a table: a code of `code_bits` bits stands for an integer *level*; the real value is level x scale. To add
one, write a file beside this one that makes a `Format` and calls `register`: docs/add-a-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError, UnknownNameError

Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]

INTEGERS = (np.int8, np.uint8, np.int16, np.int32)
LARGEST_LEVEL = 1 << 16  # with activations of 8 bits, sums of 128 such products leave int32


@dataclass(frozen=True)
class Format:
    """A low-bit number format: `table[code]` is the integer level of a code, or None where no level has that code."""

    name: str
    code_bits: int
    table: tuple[int | None, ...] = field(repr=False)
    summary: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.code_bits <= 8 or len(self.table) != 1 << self.code_bits:
            raise FormatError(f"format {self.name}: {len(self.table)} codes do not make a {self.code_bits}-bit table")
        levels = [level for level in self.table if level is not None]
        for level in levels:
            # A real level would be cut to an integer by every decoder and kernel.
            if not isinstance(level, (int, np.integer)) or isinstance(level, bool):
                raise FormatError(
                    f"format {self.name}: level {level!r} is {type(level).__name__}, expected an integer: give integer "
                    "levels relative to the smallest one, which belongs to the scale (formats/power_of_two.py)"
                )
            if abs(level) > LARGEST_LEVEL:
                raise FormatError(f"format {self.name}: level {level} is beyond {LARGEST_LEVEL}; make the scale larger")
        if len(set(levels)) != len(levels) or not levels:
            raise FormatError(f"format {self.name}: every level needs exactly one code")

    @property
    def levels(self) -> Int32:
        """All levels, ascending, int32."""
        return np.array(sorted(level for level in self.table if level is not None), np.int32)

    @property
    def largest(self) -> int:
        """The largest absolute level."""
        return int(np.abs(self.levels).max())

    @property
    def decoder(self) -> str:
        """The ONNX function that gives its levels: `DecodeInt4` for int4, `DecodePow2_4n` for pow2_4n."""
        return "Decode" + self.name.capitalize()

    @property
    def dequantizer(self) -> str:
        """The ONNX function that applies scales by group, too: `DequantizeInt4` for int4."""
        return "Dequantize" + self.name.capitalize()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest integer dtype that holds all levels: what `decode` returns."""
        return self._by_code.dtype

    @cached_property
    def _by_code(self) -> npt.NDArray[Any]:
        """The level of each code, 0 where it has none."""
        values = [0 if level is None else level for level in self.table]
        fits = (t for t in INTEGERS if np.iinfo(t).min <= min(values) and max(values) <= np.iinfo(t).max)
        return np.array(values, next(fits))

    @cached_property
    def _by_level(self) -> npt.NDArray[np.int16]:
        """The code of each level, -1 where there is no such level; negative levels index from the end."""
        codes = np.full(2 * self.largest + 1, -1, np.int16)
        for code, level in enumerate(self.table):
            if level is not None:
                codes[level] = code
        return codes

    def encode(self, levels: npt.ArrayLike) -> UInt8:
        """Integer levels (any shape) to uint8 codes; raises FormatError for a level the format does not have."""
        wanted = np.asarray(levels)
        if not np.issubdtype(wanted.dtype, np.integer):
            raise FormatError(f"{self.name}: levels must be integers, got {wanted.dtype}")
        known = self.levels
        outside = wanted.size and (wanted.min() < known[0] or wanted.max() > known[-1])
        wrong = (wanted < known[0]) | (wanted > known[-1]) if outside else (codes := self._by_level[wanted]) < 0
        if wrong.any():
            raise FormatError(f"{self.name} has no level {int(wanted[wrong].flat[0])}; it has {known.tolist()[:20]}")
        return np.asarray(codes, np.uint8)

    def decode(self, codes: UInt8) -> npt.NDArray[Any]:
        """uint8 codes (any shape) to levels of `dtype`; raises FormatError for a code that has no level."""
        codes = np.asarray(codes)
        holes = np.array([level is None for level in self.table])
        if codes.size and int(codes.max()) >= len(self.table):
            raise FormatError(f"{self.name}: code {int(codes.max())} does not fit into {self.code_bits} bits")
        if holes.any() and holes[codes].any():
            raise FormatError(f"{self.name}: code {int(codes[holes[codes]].flat[0])} stands for no level")
        return self._by_code[codes]


_registry: dict[str, Format] = {}


def register(fmt: Format) -> Format:
    """Make a format known by its name; raises FormatError when the name is taken."""
    if fmt.name in _registry:
        raise FormatError(f"format '{fmt.name}' is registered twice")
    _registry[fmt.name] = fmt
    return fmt


def get(name: str) -> Format:
    """The format of that name; raises UnknownNameError with the nearest name."""
    if name not in _registry:
        raise UnknownNameError("format", name, _registry)
    return _registry[name]


def all_formats() -> Iterator[Format]:
    """Every registered format, in the order of registration."""
    return iter(tuple(_registry.values()))
