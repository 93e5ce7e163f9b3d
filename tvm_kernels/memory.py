"""The memory plan: offsets of all intermediate tensors in one arena, computed when the model is compiled.

A buffer is live from the call that writes it to the last call that reads it. The planner places one after another, each
at the lowest offset where it overlaps no buffer that is live at the same time (Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference", 2020: greedy by size), in several orders, and keeps the smallest arena. No
arena can be smaller than `lower_bound`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes; SUBBYTE_ALIGNMENT of runtime/c/subbyte.h


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of every tensor."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Buffer:
    """A tensor in the arena: it is live in calls first..last, both included."""

    name: str
    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Buffer) -> bool:
        """Whether both are live at some call."""
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
    lambda b: (-b.last, -aligned(b.nbytes), -b.first),  # in reverse order
)


def plan(buffers: Sequence[Buffer]) -> Arena:
    """Place buffers so that no two live at the same call overlap; every offset is a multiple of 64 bytes."""
    return min((_greedy(sorted(buffers, key=order)) for order in ORDERS), key=lambda arena: arena.nbytes)


def _greedy(buffers: Sequence[Buffer]) -> Arena:
    placed = Placed(1 + max((buffer.last for buffer in buffers), default=0))
    offsets: dict[str, int] = {}
    size = 0
    for buffer in buffers:
        taken = sorted((offset, aligned(other.nbytes)) for offset, other in placed.overlapping(buffer))
        offset = 0
        for start, length in taken:
            if offset + aligned(buffer.nbytes) <= start:
                break
            offset = max(offset, start + length)
        placed.add(offset, buffer)
        offsets[buffer.name] = offset
        size = max(size, offset + aligned(buffer.nbytes))
    return Arena(offsets, size, lower_bound(buffers))


class Placed:
    """Buffers with their offsets; finds those whose lifetimes overlap another's without a scan of all.

    They are live at the first call of the other, or begin at a later call of it. A segment tree finds the former: every
    lifetime is the union of a few nodes, and a call is in the nodes from its leaf to the root. A sorted list of first
    calls finds the latter.
    """

    def __init__(self, calls: int) -> None:
        self._leaves = 1 << max(0, calls - 1).bit_length()
        self._living: list[list[tuple[int, Buffer]]] = [[] for _ in range(2 * self._leaves)]
        self._begins: list[tuple[int, int]] = []  # first call, index in `_placed`
        self._placed: list[tuple[int, Buffer]] = []
        self.visits = 0  # of buffers and tree nodes: the cost of a plan, for tests

    def add(self, offset: int, buffer: Buffer) -> None:
        insort(self._begins, (buffer.first, len(self._placed)))
        self._placed.append((offset, buffer))
        low, high = buffer.first + self._leaves, buffer.last + self._leaves + 1
        while low < high:
            for node in (*([low] if low & 1 else []), *([high - 1] if high & 1 else [])):
                self._living[node].append((offset, buffer))
                self.visits += 1
            low, high = (low + 1) // 2, high // 2

    def overlapping(self, buffer: Buffer) -> list[tuple[int, Buffer]]:
        """Every placed buffer that is live at the same time, once, with its offset."""
        found: list[tuple[int, Buffer]] = []
        node = buffer.first + self._leaves
        while node:
            found += self._living[node]
            node //= 2
        start = bisect_left(self._begins, (buffer.first + 1, 0))
        end = bisect_left(self._begins, (buffer.last + 1, 0))
        found += [self._placed[index] for _, index in self._begins[start:end]]
        self.visits += len(found) + self._leaves.bit_length()
        return found


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes that are live at one call."""
    change: dict[int, int] = {}
    for buffer in buffers:
        change[buffer.first] = change.get(buffer.first, 0) + aligned(buffer.nbytes)
        change[buffer.last + 1] = change.get(buffer.last + 1, 0) - aligned(buffer.nbytes)
    live = busiest = 0
    for call in sorted(change):
        live += change[call]
        busiest = max(busiest, live)
    return busiest
