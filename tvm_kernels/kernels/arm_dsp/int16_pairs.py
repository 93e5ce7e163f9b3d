"""Words of two int16 halves, for CPUs that multiply both at once (Arm's DSP extension): arithmetic, packing, decoding.

Weights are constants at their own bits and are decoded into such words. A packed word of 32 bits has 16 // bits pairs:
the first code of pair i at bit i x bits, the second 16 bits above, so that a shift and a mask extract a pair. Widths
that do not divide 16 leave unused bits: 1 bit in 16 at 3 and 5 bits, 2 at 7, 4 at 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.formats import Format, IntegerLevels
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import smallest_integer
from subbyte.tvm_kernels.kernels.tir.signature import Signature, view

EVEN_BYTES = 0x00FF00FF


def both(half: int) -> Any:
    """A word with this integer in each half."""
    return T.uint32((half & 0xFFFF) * 0x10001)


def dot(total: Any, left: Any, right: Any) -> Any:
    """total + the products of both halves, int32."""
    return T.call_pure_extern("int32", "subbyte_smlad", left, right, total)


def low_product(total: Any, left: Any, right: Any) -> Any:
    """total + the product of the lower halves, int32."""
    return T.call_pure_extern("int32", "subbyte_smlabb", left, right, total)


def high_product(total: Any, left: Any, right: Any) -> Any:
    """total + the product of the upper halves, int32."""
    return T.call_pure_extern("int32", "subbyte_smlatt", left, right, total)


def minus(left: Any, right: Any) -> Any:
    """Both halves' differences."""
    return T.call_pure_extern("uint32", "subbyte_ssub16", left, right)


def even_bytes(word: Any) -> Any:
    """Bytes 0 and 2 of four, unsigned."""
    return word & T.uint32(EVEN_BYTES)


def odd_bytes(word: Any) -> Any:
    """Bytes 1 and 3 of four, unsigned."""
    return T.call_pure_extern("uint32", "subbyte_odd_bytes", word)


@dataclass(frozen=True)
class Words:
    """Words in a workspace that are stored one at a time and loaded two at a time, which is one instruction."""

    one: Any  # uint32
    two: Any  # uint64, the same memory

    def load(self, index: Any, count: int) -> Iterator[Any]:
        """`count` words from `index` on, which is even where `count` is; each is loaded when it is asked for."""
        if count % 2:
            yield from (T.bind(self.one[index + i]) for i in range(count))
            return
        for i in range(0, count, 2):
            both = T.bind(self.two[(index + i) // 2])
            yield T.bind(T.Cast("uint32", both))
            yield T.bind(T.Cast("uint32", T.shift_right(both, T.uint64(32))))


def words_in(scratch: Any, count: int, byte_offset: int = 0) -> Words:
    """`count` words of a workspace from `byte_offset` on, a multiple of 8."""
    sizes = {"uint32": count, "uint64": count // 2}
    return Words(*(view(scratch, (size,), dtype, byte_offset) for dtype, size in sizes.items()))


def pairs_in_word(bits: int) -> int:
    """Pairs of codes in a packed word."""
    return 16 // bits


def pack_pairs(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """uint8 codes [streams, pairs, 2] as uint32 [streams, words]; each stream begins at a word."""
    each = pairs_in_word(bits)
    streams, pairs, _ = codes.shape
    padded = np.zeros((streams, -(-pairs // each) * each, 2), np.uint32)
    padded[:, :pairs] = codes
    grouped = padded.reshape(streams, -1, each, 2)
    shifts = np.arange(each, dtype=np.uint32)[:, None] * bits + np.array([0, 16], np.uint32)
    return np.asarray(np.bitwise_or.reduce(grouped << shifts, axis=(2, 3)), np.uint32)


def declare_decoder(fmt: Format, codes: npt.NDArray[np.uint8], signature: Signature) -> Callable[[Any, Any], None]:
    """Declare codes [streams, pairs, 2] packed as a constant.

    Returns decode(stream, target), which emits target[pair] = a word of two levels for every pair of a stream; the
    target is large enough for whole packed words.
    """
    packed = pack_pairs(codes, fmt.code_bits)
    words = packed.shape[1]
    buffer = signature.constant("weight", packed.reshape(-1))
    each = pairs_in_word(fmt.code_bits)
    level = _level_of(fmt.integer_levels, signature)

    def decode(stream: Any, target: Any) -> None:
        with T.serial(0, words) as w:
            word = T.bind(buffer[stream * words + w])
            for i in range(each):
                shift = i * fmt.code_bits
                shifted = word if shift == 0 else T.shift_right(word, T.uint32(shift))
                T.buffer_store(target, level(shifted), [w * each + i])

    return decode


def _level_of(levels: IntegerLevels, signature: Signature) -> Callable[[Any], Any]:
    """A word with a pair of codes at bits 0 and 16, and other bits set -> their levels."""
    bits = levels.code_bits
    mask, half = (1 << bits) - 1, 1 << bits - 1
    if levels.twos_complement:
        if bits == 8:
            return lambda word: T.call_pure_extern("uint32", "subbyte_sxtb16", word)
        return lambda word: minus((word & both(mask)) ^ both(half), both(half))
    first, step = levels.line or (0, 0)
    if step > 0 and mask * step < 1 << 16:

        def equally_spaced(word: Any) -> Any:
            masked = word & both(mask)
            stepped = masked if step == 1 else masked * T.uint32(step)
            return stepped if first == 0 else minus(stepped, both(-first))

        return equally_spaced
    assert smallest_integer(levels.values) != "int32"
    table = signature.constant("levels", levels.by_code.astype(np.int16).view(np.uint16))

    def look_up(word: Any) -> Any:
        low = T.Cast("uint32", table[T.Cast("int32", word & T.uint32(mask))])
        high = table[T.Cast("int32", T.shift_right(word, T.uint32(16)) & T.uint32(mask))]
        return low | T.shift_left(T.Cast("uint32", high), T.uint32(16))

    return look_up
