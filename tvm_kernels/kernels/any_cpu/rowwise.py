"""Loops along the channels of each row: whole vectors, then a tail of smaller powers of two; reductions.

`vector_rows` registers one builder as three rows of the kernel table, which differ in their lanes: AVX-512, AVX2, and
any CPU (four lanes, which LLVM splits where a CPU has fewer; one lane in C sources).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Ramp, Shuffle

from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.tir.vectors import splat

Pieces = list[tuple[int, int]]
ELEMENTS_PER_TILE = 8192  # below, distributing over threads costs more than it gains
MOST_TILES = 16
CHAINS = 4  # independent sums: the latency of an addition is about four cycles


def vector_rows(
    name: str,
    serves: type,
    build: Callable[[Any, int], Built],
    refuses: Callable[[Any], str | None] = lambda op: None,
    prefer: int = 0,
) -> None:
    """Register `build(op, lanes)` for CPUs with 16, 8 and 4 lanes of float32; `prefer` is added to each row's own."""

    def add(suffix: str, needs: set[str], order: int, lanes: int) -> None:
        def made(op: Any) -> Built:
            return build(op, 1 if current_code_generator() == "c" else lanes)

        kernel(f"{name}-{suffix}", serves=serves, needs=needs, prefer=prefer + order, refuses=refuses)(made)

    add("avx512", {"avx512f", "avx512bw"}, 100, 16)
    add("avx2", {"avx2", "fma"}, 80, 8)
    add("portable", set(), 0, 4)


def rows_per_tile(rows: int, elements_per_row: int) -> int:
    """Rows of a tile."""
    enough = -(-ELEMENTS_PER_TILE // max(1, elements_per_row))
    tiles = max(1, min(MOST_TILES, rows // enough))
    return -(-rows // tiles)


@contextmanager
def each_row(rows: int, elements_per_row: int) -> Iterator[Any]:
    """A loop over all rows, which threads share; gives the row."""
    block = rows_per_tile(rows, elements_per_row)
    with T.parallel(0, -(-rows // block)) as tile, T.serial(0, T.min(block, rows - tile * block)) as i:
        yield T.bind(tile * block + i)


def at(start: Any, lanes: int) -> Any:
    """The index of `lanes` consecutive elements."""
    return start if lanes == 1 else Ramp(start, 1, lanes)


def tail(count: int, lanes: int) -> Pieces:
    """The last count % lanes elements as (offset, lanes) pieces of smaller powers of two."""
    offset = count - count % lanes
    pieces = []
    while offset < count:
        while lanes > count - offset:
            lanes //= 2
        pieces.append((offset, lanes))
        offset += lanes
    return pieces


def along(count: int, lanes: int, body: Callable[[Any, int], None], unroll: int = 1) -> None:
    """Emit body(offset, lanes) for all of `count` elements, `unroll` vectors in each iteration of the loop."""
    step = lanes * unroll
    if count >= step:
        with T.serial(0, count // step) as i:
            for u in range(unroll):
                body(i * step + u * lanes, lanes)
    rest = count - count % step
    for offset, width in [(o, lanes) for o in range(rest, count - lanes + 1, lanes)] + tail(count, lanes):
        body(offset, width)


def across(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """All lanes of a vector reduced to a scalar, in a tree of halves."""
    while lanes > 1:
        half = lanes // 2
        value = T.bind(value)
        low, high = (Shuffle([value], list(range(first, first + half))) for first in (0, half))
        value = combine(low, high)
        lanes = half
    return value


def reduce(
    count: int, lanes: int, first: Any, load: Callable[[Any, int], Any], combine: Callable[[Any, Any], Any]
) -> Any:
    """Emit the reduction of load(offset, lanes) over `count` elements from the scalar `first`; returns a scalar."""
    chains = max(1, min(CHAINS, count // lanes))
    sums = [T.alloc_buffer((lanes,), str(first.ty.dtype)) for _ in range(chains)]
    place = at(0, lanes)
    for one in sums:
        T.buffer_store(one, splat(first, lanes), [place])
    step = chains * lanes

    def add(chain: int, offset: Any) -> None:
        T.buffer_store(sums[chain], combine(sums[chain][place], load(offset, lanes)), [place])

    if count >= step:
        with T.serial(0, count // step) as i:
            for chain in range(chains):
                add(chain, i * step + chain * lanes)
    rest = count - count % step
    for chain, offset in enumerate(range(rest, count - lanes + 1, lanes)):
        add(chain, offset)
    values = [T.bind(one[place]) for one in sums]
    while len(values) > 1:
        values = [combine(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    total = across(values[0], lanes, combine)
    for offset, width in tail(count, lanes):
        total = combine(total, across(load(offset, width), width, combine))
    return T.bind(total)
