"""Counting bits of 32 channels at once by bit slicing: word i consists of bit i of all 32 counts.

Seven full adders of five logical operations add eight words (Harley-Seal: Faster Population Counts Using AVX2
Instructions, Mula, Kurz, Lemire, 2018); no population count and no unpacking is needed. Where an epilogue stores bits,
each channel's bit is a comparison of its count with a threshold: bit n of a count that starts at 2^n - threshold is the
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.operators import WORD, Activate, Bias, Bits, Clip, Epilogue, PRelu, Scale, ToBits

EXACT_STEPS = (Scale, Bias, Clip, PRelu)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """bit = (count >= at) xor inverted, for each channel; count: how many of `depth` bits differ."""

    depth: int
    at: npt.NDArray[np.int64]  # 0 .. depth + 1
    inverted: npt.NDArray[np.bool_]

    @property
    def planes(self) -> int:
        """Words of a sliced count that starts at 2^n - threshold; the last word is the result."""
        return (self.depth + 1).bit_length() + 1

    def starts(self) -> npt.NDArray[np.uint32]:
        """[words of channels, planes + 1]: the initial sliced counts, then the mask to exclusive-or the result with.

        Bits beyond the last channel are 0 in the result, if they are 0 in the counted words.
        """
        words = -(-self.at.size // WORD)
        begin = np.zeros((words * WORD, self.planes + 1), np.uint32)
        counts = (1 << self.planes - 1) - self.at
        begin[: self.at.size, : self.planes] = counts[:, None] >> np.arange(self.planes) & 1
        begin[: self.at.size, self.planes] = self.inverted
        channel_bits = np.uint32(1) << np.arange(WORD, dtype=np.uint32)
        return np.asarray((begin.reshape(words, WORD, -1) * channel_bits[:, None]).sum(axis=1, dtype=np.uint32))


def thresholds(epilogue: Epilogue, depth: int, channels: int) -> Thresholds | str:
    """The epilogue of a sum depth - 2 x count as thresholds of the count, or the reason why it is not one."""
    if len(epilogue.stores) != 1 or not isinstance(epilogue.stores[0], ToBits):
        return "its outputs are not one output of bits"
    for step in epilogue.steps:
        if not isinstance(step, EXACT_STEPS) and not (isinstance(step, Activate) and step.function == "relu"):
            return f"{type(step).__name__} in the epilogue"
    # Every possible sum is run through the epilogue itself, so that rounding is the same.
    sums = depth - 2 * np.arange(depth + 1)
    y = np.broadcast_to(sums[:, None], (depth + 1, channels)).astype(np.float32)
    (stored,) = epilogue.reference(y, {})
    bits = Bits(channels).levels(stored) > 0
    inverted = bits[0]
    changed = bits != inverted
    if (np.diff(changed.astype(np.int8), axis=0) < 0).any():
        return "an epilogue that is not monotonic"
    return Thresholds(depth, (~changed).sum(axis=0), inverted)


class SlicedCount:
    """Counts of 32 channels, emitted as operations on one word for each bit of them."""

    def __init__(self, begin: Sequence[Any]) -> None:
        """`begin`: the words of the initial counts, the lowest bit first."""
        self._planes = [T.alloc_buffer((1,), "uint32") for _ in begin]
        for plane, value in zip(self._planes, begin, strict=True):
            T.buffer_store(plane, value, [0])

    def highest(self) -> Any:
        """The highest bit of each count."""
        return self._planes[-1][0]

    def add(self, words: Sequence[Any]) -> None:
        """Add each channel's bit of every word to its count. `words` are bound values."""
        carries = [list(words)]
        for level in range(len(self._planes)):
            carries.append(self._add_level(level, carries[level]))

    def _add_level(self, level: int, words: list[Any]) -> list[Any]:
        """Add words of weight 2^level to that plane; returns the carries."""
        plane = self._planes[level]
        last = level == len(self._planes) - 1
        carries = []
        total = T.bind(plane[0]) if words else None
        while words:
            if len(words) == 1 or last:
                word = words.pop()
                if not last:
                    carries.append(T.bind(total & word))
                total = T.bind(total ^ word)
                continue
            a, b = words.pop(), words.pop()
            half = T.bind(a ^ b)
            carries.append(T.bind((a & b) | (half & total)))
            total = T.bind(half ^ total)
        if total is not None:
            T.buffer_store(plane, total, [0])
        return carries
