"""Codes to bytes and back: the one packing every format uses.

Layout: codes of `bits` bits lie least significant first along the last axis, as one stream of bits per row; every row
starts on a byte, and the bits left over in its last byte are zero.

    bits=2, codes [1, 2, 0, 1, 3] -> bytes [0b01_00_10_01, 0b00_00_00_11]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError

UInt8 = npt.NDArray[np.uint8]


def packed_length(length: int, bits: int) -> int:
    """Bytes that a row of `length` codes of `bits` bits takes."""
    return (length * bits + 7) // 8


def pack(codes: UInt8, bits: int) -> UInt8:
    """Pack uint8 codes [..., K] of 1 to 8 bits into uint8 [..., ceil(K * bits / 8)].

    Raises FormatError when a code does not fit into `bits` bits.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8:
        raise FormatError(f"pack wants uint8 codes, got {codes.dtype}; encode the levels first")
    if not 1 <= bits <= 8:
        raise FormatError(f"pack wants 1 to 8 bits a code, got {bits}")
    if codes.ndim == 0:
        raise FormatError("pack wants at least one axis, got a scalar")
    if codes.size and int(codes.max()) >> bits:
        raise FormatError(f"code {int(codes.max())} does not fit into {bits} bits")
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    flat = stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits)
    return np.packbits(flat, axis=-1, bitorder="little")


def unpack(packed: UInt8, bits: int, length: int) -> UInt8:
    """The inverse of `pack`: uint8 [..., ceil(length * bits / 8)] to codes [..., length].

    Raises FormatError when a row has the wrong number of bytes or its padding bits are not zero.
    """
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim == 0:
        raise FormatError(f"unpack wants uint8 [..., bytes], got {packed.dtype} {packed.shape}")
    expected = packed_length(length, bits)
    if packed.shape[-1] != expected:
        raise FormatError(
            f"packed row has {packed.shape[-1]} bytes, expected {expected} for {length} codes of {bits} bits"
        )
    stream = np.unpackbits(packed, axis=-1, bitorder="little")
    if stream[..., length * bits :].any():
        raise FormatError("padding bits of a packed row are not zero; the payload is damaged or packed otherwise")
    stream = stream[..., : length * bits].reshape(*packed.shape[:-1], length, bits)
    weights = (np.uint16(1) << np.arange(bits, dtype=np.uint16)).astype(np.uint16)
    codes: UInt8 = (stream * weights).sum(axis=-1).astype(np.uint8)
    return codes
