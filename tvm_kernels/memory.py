"""Where every intermediate tensor lies: one arena, planned when the model is compiled.

A buffer lives from the call that writes it to the last call that reads it. The planner places one after another, each
at the lowest offset where it overlaps no buffer that lives at the same time (Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference", 2020: greedy by size), in several orders, and keeps the smallest arena. No
arena can be smaller than `lower_bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes; SUBBYTE_ALIGNMENT of runtime/c/subbyte.h


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of every tensor."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Buffer:
    """A tensor in the arena: it lives in calls first..last, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both live at some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes by buffer name, the size of the arena, and the least size that any plan could have."""

    offsets: dict[str, int]
    nbytes: int
    lower_bound: int


Key = tuple[int, int, int]
ORDERS: tuple[Callable[[Buffer], Key], ...] = (
    lambda b: (-aligned(b.nbytes), b.first, b.last),  # the largest first
    lambda b: (-aligned(b.nbytes) * (b.last - b.first + 1), b.first, b.last),  # the most bytes x calls first
    lambda b: (b.first, -aligned(b.nbytes), b.last),  # in the order of the calls
    lambda b: (-b.last, -aligned(b.nbytes), -b.first),  # and against it
)


def plan(buffers: Sequence[Buffer]) -> Arena:
    """Place buffers so that no two that live at once overlap; every offset is a multiple of 64 bytes."""
    return min((_greedy(sorted(buffers, key=order)) for order in ORDERS), key=lambda arena: arena.nbytes)


def _greedy(buffers: Sequence[Buffer]) -> Arena:
    placed: list[tuple[int, Buffer]] = []
    offsets: dict[str, int] = {}
    for buffer in buffers:
        taken = sorted((offset, other) for offset, other in _neighbours(buffer, placed))
        offset = 0
        for start, length in taken:
            if offset + aligned(buffer.nbytes) <= start:
                break
            offset = max(offset, start + length)
        placed.append((offset, buffer))
        offsets[buffer.name] = offset
    size = max((offset + aligned(buffer.nbytes) for offset, buffer in placed), default=0)
    return Arena(offsets, size, lower_bound(buffers))


def _neighbours(buffer: Buffer, placed: Sequence[tuple[int, Buffer]]) -> list[tuple[int, int]]:
    """Offset and length of every placed buffer that lives at the same time."""
    return [(offset, aligned(other.nbytes)) for offset, other in placed if other.meets(buffer)]


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """Bytes that live at once at the busiest call."""
    change: dict[int, int] = {}
    for buffer in buffers:
        change[buffer.first] = change.get(buffer.first, 0) + aligned(buffer.nbytes)
        change[buffer.last + 1] = change.get(buffer.last + 1, 0) - aligned(buffer.nbytes)
    live = busiest = 0
    for call in sorted(change):
        live += change[call]
        busiest = max(busiest, live)
    return busiest
