"""The arena: no two tensors that live at once share a byte, and straight lines need no more than they must."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from subbyte.tvm_kernels import memory
from subbyte.tvm_kernels.memory import Buffer

BUFFERS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 8)), min_size=0, max_size=40).map(
    lambda rows: [Buffer(f"t{i}", size, first, first + length) for i, (size, first, length) in enumerate(rows)]
)


@given(BUFFERS)
def test_live_tensors_never_overlap(buffers):
    arena = memory.plan(buffers)
    assert set(arena.offsets) == {b.name for b in buffers}
    for i, one in enumerate(buffers):
        start = arena.offsets[one.name]
        assert start % 64 == 0
        assert start + one.nbytes <= arena.nbytes
        for other in buffers[i + 1 :]:
            if one.overlaps(other) and one.nbytes and other.nbytes:
                apart = start + one.nbytes <= arena.offsets[other.name]
                assert apart or arena.offsets[other.name] + other.nbytes <= start
    assert arena.lower_bound <= arena.nbytes


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.booleans())
def test_a_narrowing_or_widening_chain_reaches_the_lower_bound(sizes, widening):
    """Each tensor is read by the next call alone: two neighbours are all that ever lives."""
    sizes = sorted(sizes, reverse=not widening)
    chain = [Buffer(f"t{i}", size, i, i + 1) for i, size in enumerate(sizes)]
    arena = memory.plan(chain)
    padded = [memory.aligned(size) for size in sizes]
    assert arena.lower_bound == max(a + b for a, b in zip(padded, [*padded[1:], 0], strict=True))
    assert arena.nbytes == arena.lower_bound


def test_memory_is_used_again():
    arena = memory.plan([Buffer("a", 100, 0, 1), Buffer("b", 100, 1, 2), Buffer("c", 100, 2, 3)])
    assert arena.offsets["a"] == arena.offsets["c"]
    assert arena.nbytes == 256


def test_nothing_needs_nothing():
    assert memory.plan([]) == memory.Arena({}, 0, 0)


@given(BUFFERS, BUFFERS)
def test_what_meets_a_buffer_is_found_at_once(placed, asked):
    """The tree and the sorted beginnings tell what comparing with every other buffer tells."""
    known = memory.Placed(1 + max((b.last for b in (*placed, *asked)), default=0))
    for index, buffer in enumerate(placed):
        known.add(64 * index, buffer)
    for buffer in asked:
        found = sorted(offset for offset, _ in known.overlapping(buffer))
        assert found == [64 * index for index, other in enumerate(placed) if other.overlaps(buffer)]


def test_the_visits_of_a_plan_grow_in_proportion_to_a_chain():
    """Ten times the calls cost ten times the visits, and the depth of a tree that is a little deeper."""

    def visits(count):
        placed = memory.Placed(count + 1)
        for index in range(count):
            placed.overlapping(Buffer(f"t{index}", 64, index, index + 1))
            placed.add(64 * (index % 2), Buffer(f"t{index}", 64, index, index + 1))
        return placed.visits

    assert visits(20_000) < 15 * visits(2_000) < 15 * 2_000 * 20
