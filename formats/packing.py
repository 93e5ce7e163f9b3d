"""Packing of codes into bytes, the same for every format.

Layout: each row (last axis) is one stream of bits: its codes in order, `bits` bits each, least significant bit first.
Every row starts on a byte boundary; the unused bits of its last byte are zero.

    bits=2, codes [1, 2, 0, 1, 3] -> bytes [0b01_00_10_01, 0b00_00_00_11]
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError

UInt8 = npt.NDArray[np.uint8]


def packed_length(length: int, bits: int) -> int:
    """Bytes of a packed row of `length` codes of `bits` bits."""
    return (length * bits + 7) // 8


def _word(bits: int) -> tuple[int, int, np.dtype[Any]]:
    """The smallest number of codes that fills whole bytes, how many bytes, and an unsigned dtype that holds them."""
    divisor = gcd(bits, 8)
    nbytes = bits // divisor
    return 8 // divisor, nbytes, np.dtype("<u1" if nbytes == 1 else "<u4" if nbytes <= 4 else "<u8")


def pack(codes: UInt8, bits: int) -> UInt8:
    """Pack uint8 codes [..., K] of 1 to 8 bits into uint8 [..., ceil(K * bits / 8)].

    Raises FormatError when a code does not fit into `bits` bits.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8:
        raise FormatError(f"pack expects uint8 codes, got {codes.dtype}; encode the levels first")
    if not 1 <= bits <= 8:
        raise FormatError(f"pack expects codes of 1 to 8 bits, got {bits}")
    if codes.ndim == 0:
        raise FormatError("pack expects at least one axis, got a scalar")
    if codes.size and int(codes.max()) >> bits:
        raise FormatError(f"code {int(codes.max())} does not fit into {bits} bits")
    per, nbytes, dtype = _word(bits)
    *rows, length = codes.shape
    words = np.zeros((*rows, -(-length // per)), dtype)
    for index in range(per):
        part = codes[..., index::per]
        words[..., : part.shape[-1]] |= part.astype(dtype) << dtype.type(bits * index)
    stored = words.view(np.uint8).reshape(*words.shape, dtype.itemsize)[..., :nbytes]
    return np.ascontiguousarray(stored.reshape(*rows, words.shape[-1] * nbytes)[..., : packed_length(length, bits)])


def unpack(packed: UInt8, bits: int, length: int) -> UInt8:
    """The inverse of `pack`: uint8 [..., ceil(length * bits / 8)] to codes [..., length].

    Raises FormatError when a row has the wrong number of bytes or its padding bits are not zero.
    """
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim == 0:
        raise FormatError(f"unpack expects uint8 [..., bytes], got {packed.dtype} {packed.shape}")
    expected = packed_length(length, bits)
    if packed.shape[-1] != expected:
        raise FormatError(
            f"packed row has {packed.shape[-1]} bytes, expected {expected} for {length} codes of {bits} bits"
        )
    padding = 8 * expected - length * bits
    if padding and (packed[..., -1] >> np.uint8(8 - padding)).any():
        raise FormatError("padding bits of a packed row are not zero; the payload is damaged or packed differently")
    per, nbytes, dtype = _word(bits)
    rows, count = packed.shape[:-1], -(-length // per)
    if nbytes == dtype.itemsize:
        words = packed
    else:
        stored = np.zeros((*rows, count, dtype.itemsize), np.uint8)
        whole = np.zeros((*rows, count * nbytes), np.uint8)
        whole[..., :expected] = packed
        stored[..., :nbytes] = whole.reshape(*rows, count, nbytes)
        words = stored.view(dtype)[..., 0]
    codes = np.empty((*rows, length), np.uint8)
    mask = dtype.type((1 << bits) - 1)
    for index in range(per):
        part = codes[..., index::per]
        part[...] = (words[..., : part.shape[-1]] >> dtype.type(bits * index)) & mask
    return codes
