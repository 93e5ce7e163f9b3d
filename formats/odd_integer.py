"""Odd integers in 2 to 8 bits, without zero: 2^b levels that divide the range from -1 to 1 evenly.

Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients", 2016. Code q
is level 2q - (2^b - 1). In one bit these are -1 and +1: the format `binary`.
"""

from __future__ import annotations

from subbyte.formats.energy import MULTIPLY
from subbyte.formats.format import Format, register
from subbyte.formats.levels import IntegerTable


def _odd(bits: int) -> Format:
    largest = (1 << bits) - 1
    levels = IntegerTable(tuple(range(-largest, largest + 1, 2)))
    return register(Format(f"odd{bits}", levels, f"odd integers from {-largest} to {largest}", energy=MULTIPLY))


ODD = {bits: _odd(bits) for bits in range(2, 9)}
