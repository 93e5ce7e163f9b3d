"""Integers of 2 to 8 bits: two's complement `int2` ... `int8`, and `uint2` ... `uint8` for affine quantization."""

from __future__ import annotations

from subbyte.formats.format import Format, register


def _signed(bits: int) -> tuple[int, ...]:
    half = 1 << (bits - 1)
    return tuple(code if code < half else code - 2 * half for code in range(2 * half))


INT = {
    bits: register(Format(f"int{bits}", bits, _signed(bits), f"signed {bits}-bit integers, two's complement"))
    for bits in range(2, 9)
}
UINT = {
    bits: register(
        Format(f"uint{bits}", bits, tuple(range(1 << bits)), f"unsigned {bits}-bit integers, used with a zero point")
    )
    for bits in range(2, 9)
}
