"""Integers of 2 to 8 bits: two's complement `int2` ... `int8`, and `uint2` ... `uint8` for affine quantization."""

from __future__ import annotations

from subbyte.formats.energy import MULTIPLY
from subbyte.formats.format import Format, register
from subbyte.formats.levels import IntegerLine


def _integers(name: str, low: int, high: int, summary: str) -> Format:
    return register(Format(name, IntegerLine(low, high), summary, energy=MULTIPLY))


INT = {
    bits: _integers(f"int{bits}", -1 << bits - 1, (1 << bits - 1) - 1, f"signed {bits}-bit integers, two's complement")
    for bits in range(2, 9)
}
UINT = {
    bits: _integers(f"uint{bits}", 0, (1 << bits) - 1, f"unsigned {bits}-bit integers, used with a zero point")
    for bits in range(2, 9)
}


def narrowest(low: float, high: float, signed: bool = True) -> Format | None:
    """The format of fewest bits whose range holds both; None where none does."""
    formats = (INT if signed else UINT).values()
    return next((fmt for fmt in formats if fmt.levels.values[0] <= low and high <= fmt.levels.values[-1]), None)
