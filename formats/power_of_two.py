"""Powers of two: a sign and an exponent. Elhoushi et al., "DeepShift: Towards Multiplication-Less Networks", 2021.

The most significant bit of a code is the sign (1: negative), the others are the exponent field e. With zero (`pow2_B`),
e = 0 is level 0 (no level if the sign bit is set) and e > 0 is 2^(e-1). Without zero (`pow2_Bn`), e is 2^e. Levels are
integers: the scale includes the smallest power of two, so that all shifts are exact left shifts.
"""

from __future__ import annotations

from subbyte.formats.energy import SHIFT
from subbyte.formats.format import Format, register
from subbyte.formats.levels import IntegerTable


def _table(bits: int, zero: bool) -> tuple[int | None, ...]:
    half = 1 << (bits - 1)
    if zero:
        magnitudes = [0] + [1 << (field - 1) for field in range(1, half)]
        return (*magnitudes, None, *[-magnitude for magnitude in magnitudes[1:]])
    magnitudes = [1 << field for field in range(half)]
    return (*magnitudes, *[-magnitude for magnitude in magnitudes])


def _powers(name: str, bits: int, zero: bool, summary: str) -> Format:
    return register(Format(name, IntegerTable(_table(bits, zero)), summary, energy=SHIFT))


def _count(exponents: int) -> str:
    return f"{exponents} exponent{'s' if exponents > 1 else ''}"


POW2 = {
    bits: _powers(f"pow2_{bits}", bits, True, f"0 and +-2^e, {_count((1 << bits - 1) - 1)}") for bits in (2, 3, 4, 5)
}
for _bits in (2, 3, 4, 5):
    _powers(f"pow2_{_bits}n", _bits, False, f"+-2^e, {_count(1 << _bits - 1)}, no zero")
