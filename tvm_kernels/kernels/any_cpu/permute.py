"""Permuting the axes of a tensor, in registers, by one of four strategies; the result's innermost axis decides.

    copy         it is the innermost axis of the source: runs of it are copied (attention heads)
    transpose    it is another axis: blocks of L x e elements are transposed by e log2(e) shuffles
    interleave   one of the two innermost axes has at most four elements: NCHW to NHWC and back with few channels
    scalar       the code generator has no vectors

Axes of one element are dropped, and axes that stay adjacent are merged first.

A block to transpose is loaded in pieces of `e` elements (128 bits), `L / e` pieces to a vector, so that a stage of the
transposition stays within 128 bits, where a shuffle takes one instruction and one cycle, and stores are whole vectors.
Measured on a Xeon with AVX-512, one thread: float32 [196, 256] to [256, 196] in 7 us where plain loops take 47, back in
6 us; copying it takes 5. As codes 3 and 2 us. `subbyte bench` times it within a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Shuffle

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import ELEMENTS_PER_TILE, MOST_TILES, along, at, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.operators.permute import Permute

FEW = 4  # rows or columns that are interleaved rather than transposed
FEW_LANES = 16  # and their lanes: shuffles of wider vectors of bytes are many instructions
PIECE = 16  # bytes, within which shuffles are cheap on every CPU
LINE = 64  # bytes of a cache line
# Source offset, target offset, first step and steps of the parallel axis, whether these are the last.
Body = Callable[[Any, Any, Any, Any, Any], None]


@dataclass(frozen=True)
class Axis:
    """An axis of the result: its length, and its strides in the source and in the target."""

    size: int
    source: int
    target: int


def merged(shape: Sequence[int], perm: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same permutation of fewer axes: those of one element dropped, those that stay adjacent merged."""
    kept = [axis for axis in perm if shape[axis] != 1]
    runs: list[list[int]] = []
    for axis in kept:
        previous = runs[-1][-1] if runs else None
        if previous is not None and axis > previous and all(shape[i] == 1 for i in range(previous + 1, axis)):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    order = sorted(range(len(runs)), key=lambda i: runs[i][0])
    sizes = tuple(prod(shape[axis] for axis in runs[i]) for i in order)
    return sizes, tuple(order.index(i) for i in range(len(runs)))


def axes_of(shape: Sequence[int], perm: Sequence[int]) -> list[Axis]:
    """The axes of the result, outermost first, after merging; at least two."""
    sizes, order = merged(shape, perm)
    axes = [
        Axis(sizes[axis], prod(sizes[axis + 1 :]), prod(sizes[i] for i in order[at + 1 :]))
        for at, axis in enumerate(order)
    ]
    while len(axes) < 2:
        axes.insert(0, Axis(1, 0, 0))
    return axes


# ---- loops ----


def distributed(axes: Sequence[Axis], along_axis: int, step: int, per_step: int, body: Body) -> None:
    """The loops around `body`, distributed over threads.

    `body` does a range of steps along axes[along_axis], each of `step` indices (and of `per_step` elements in all). The
    last range includes the remainder: a step for it may overlap the step before, which is in the same tile.
    """
    axis = axes[along_axis]
    outer = [a for i, a in enumerate(axes) if i != along_axis]
    many = prod(a.size for a in outer)
    steps = axis.size // step
    tiles = max(1, min(MOST_TILES, many * steps * per_step // ELEMENTS_PER_TILE))
    group = -(-many // tiles)  # of the outer axes, in a tile
    groups = -(-many // group)
    cuts = max(1, min(steps, tiles // groups)) if group == 1 else 1
    block = -(-steps // cuts)
    cuts = -(-steps // block)
    with T.parallel(0, groups * cuts) as tile:
        cut = T.bind(T.truncmod(tile, cuts)) if cuts > 1 else T.int32(0)
        first = T.bind(T.truncdiv(tile, cuts) * group)
        with T.serial(0, T.min(group, many - first)) as i:
            source, target = _offsets(outer, first + i)
            start = T.bind(cut * block)
            body(source, target, start, T.min(block, steps - start), cut == cuts - 1)


def _offsets(outer: Sequence[Axis], index: Any) -> tuple[Any, Any]:
    """Offsets in source and target of an index into the outer axes, in the order of the result."""
    source, target = T.int32(0), T.int32(0)
    rest = T.bind(index)
    for axis in reversed(outer):
        if axis.size == 1:
            continue
        index = T.bind(T.truncmod(rest, axis.size))
        rest = T.bind(T.truncdiv(rest, axis.size))
        source, target = source + index * axis.source, target + index * axis.target
    return T.bind(source), T.bind(target)


# ---- shuffles ----


def transposed(rows: Sequence[Any], piece: int, lanes: int) -> list[Any]:
    """The transposed blocks of `piece` vectors, in which each run of `piece` lanes is one row of a square block.

    Each stage interleaves the first halves of two runs, then the second halves: log2(piece) of them transpose.
    """
    half = piece // 2
    low = [lane for run in range(0, lanes, piece) for i in range(run, run + half) for lane in (i, lanes + i)]
    high = [lane + half for lane in low]
    values = list(rows)
    for _ in range(piece.bit_length() - 1):
        pairs = [(values[i], values[i + half]) for i in range(half)]
        values = [T.bind(Shuffle(list(pair), lanes_of)) for pair in pairs for lanes_of in (low, high)]
    return values


def gathered(vectors: Sequence[Any], picks: Sequence[tuple[int, int]]) -> Any:
    """A vector of the lanes (vector, lane), by shuffles of two vectors each."""
    lanes = len(picks)
    result = None
    for number in sorted({vector for vector, _ in picks}):
        chosen = [(lane if vector == number else None) for vector, lane in picks]
        if result is None:
            result = T.bind(Shuffle([vectors[number]], [i if lane is None else lane for i, lane in enumerate(chosen)]))
        else:
            order = [i if lane is None else lanes + lane for i, lane in enumerate(chosen)]
            result = T.bind(Shuffle([result, vectors[number]], order))
    return result


def _power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


# ---- the four strategies ----


@dataclass(frozen=True)
class Task:
    """A permutation to emit: buffers, axes of the result, lanes of the element's type."""

    source: Any
    target: Any
    axes: list[Axis]
    lanes: int
    piece: int
    width: int  # bytes of an element


def copy(task: Task) -> None:
    """Copy runs of the innermost axis, which is also that of the source."""
    run = task.axes[-1].size

    def body(source: Any, target: Any, first: Any, count: Any, final: Any) -> None:
        with T.serial(0, count) as i:
            begin = T.bind(source + (first + i) * task.axes[-2].source)
            end = T.bind(target + (first + i) * task.axes[-2].target)

            def elements(c: Any, n: int) -> None:
                T.buffer_store(task.target, task.source[at(begin + c, n)], [at(end + c, n)])

            along(run, task.lanes, elements)

    distributed(task.axes[:-1], len(task.axes) - 2, 1, run, body)


def scalar(task: Task) -> None:
    """One element at a time, in the order of the result."""
    row_axis, inner = task.axes[-2:]

    def body(source: Any, target: Any, first: Any, count: Any, final: Any) -> None:
        with T.serial(0, count) as row:
            begin = T.bind(source + (first + row) * row_axis.source)
            end = T.bind(target + (first + row) * row_axis.target)
            with T.serial(0, inner.size) as i:
                T.buffer_store(task.target, task.source[begin + i * inner.source], [end + i])

    distributed(task.axes[:-1], len(task.axes) - 2, 1, inner.size, body)


def transpose(task: Task, column: int) -> None:
    """Transpose blocks: `axes[column]` is the innermost axis of the source."""
    rows, columns = task.axes[-1], task.axes[column]
    piece = _power_of_two(min(task.piece, rows.size, columns.size))

    pieces = -(-columns.size // piece)
    together = min(pieces, LINE // task.width // piece)

    def block(source: Any, target: Any, row: Any, i: Any, lanes: int) -> None:
        """`lanes` rows of the i-th piece of columns; the last piece may overlap the one before it."""
        c = i * piece if columns.size % piece == 0 else T.min(i * piece, columns.size - piece)
        begin = T.bind(source + row * rows.source + c)
        end = T.bind(target + row + c * columns.target)
        loaded = []
        for r in range(piece):
            starts = [begin + (run + r) * rows.source for run in range(0, lanes, piece)]
            runs = [T.bind(task.source[at(start, piece)]) for start in starts]
            loaded.append(T.bind(Shuffle(runs, list(range(lanes)))) if len(runs) > 1 else runs[0])
        for inside, vector in enumerate(transposed(loaded, piece, lanes)):
            T.buffer_store(task.target, vector, [at(end + inside * columns.target, lanes)])

    lanes = _power_of_two(min(task.lanes, rows.size))
    if columns.target % lanes and task.width > 1:
        # Where stores cross cache lines, four of 16 bytes are faster than one of 64; not for bytes: more shuffles.
        lanes = piece
    rest = rows.size % lanes
    narrow = min(lanes, max(piece, _power_of_two(2 * rest - 1))) if rest else 0

    def body(source: Any, target: Any, first: Any, count: Any, final: Any) -> None:
        # All rows for one cache line of columns at a time: source lines are read once, target lines written in order.
        with T.serial(0, -(-pieces // together)) as part:
            begin = T.bind(part * together)
            count_together = T.bind(T.min(together, pieces - begin))
            with T.serial(0, count) as s, T.serial(0, count_together) as i:
                block(source, target, (first + s) * lanes, begin + i, lanes)
            if rest:
                with T.If(final), T.Then(), T.serial(0, count_together) as i:
                    block(source, target, rows.size - narrow, begin + i, narrow)

    axes = [axis for i, axis in enumerate(task.axes) if i != column]
    distributed(axes, len(axes) - 1, lanes, lanes * columns.size, body)


def interleave(task: Task, axis: Axis, few: Axis) -> None:
    """Interleave the two innermost axes, of the result or of the source: a long one and one of few elements."""
    k, lanes = few.size, min(task.lanes, FEW_LANES)
    joins = few.target == 1  # rows become columns; else columns become rows

    def block(source: Any, target: Any, start: Any) -> None:
        begin, end = T.bind(source + start * axis.source), T.bind(target + start * axis.target)
        if joins:
            vectors = [T.bind(task.source[at(begin + c * few.source, lanes)]) for c in range(k)]
            for m in range(k):
                indices = range(m * lanes, (m + 1) * lanes)
                joined = gathered(vectors, [(index % k, index // k) for index in indices])
                T.buffer_store(task.target, joined, [at(end + m * lanes, lanes)])
        else:
            vectors = [T.bind(task.source[at(begin + m * lanes, lanes)]) for m in range(k)]
            for c in range(k):
                indices = range(c, lanes * k, k)
                column = gathered(vectors, [(index // lanes, index % lanes) for index in indices])
                T.buffer_store(task.target, column, [at(end + c * few.target, lanes)])

    def body(source: Any, target: Any, first: Any, count: Any, final: Any) -> None:
        with T.serial(0, count) as i:
            block(source, target, (first + i) * lanes)
        if axis.size % lanes:
            with T.If(final), T.Then():
                block(source, target, axis.size - lanes)

    axes = [a for a in task.axes if a is not few]
    distributed(axes, axes.index(axis), lanes, lanes * k, body)


def permute(task: Task) -> None:
    """Emit the permutation by the strategy for its axes."""
    axes, inner = task.axes, task.axes[-1]
    if inner.source == 1 or inner.size == 1:
        return copy(task)
    if task.lanes == 1:
        return scalar(task)
    column = next(i for i, axis in enumerate(axes) if axis.source == 1)
    outer = axes[column]
    enough = min(task.lanes, FEW_LANES)
    if inner.size <= FEW and outer.size >= enough and outer.target == inner.size:
        return interleave(task, outer, inner)
    if outer.size <= FEW and inner.size >= enough and inner.source == outer.size:
        return interleave(task, inner, outer)
    return transpose(task, column)


def build(op: Permute, lanes: int) -> Built:
    axes = axes_of(op.shape, op.perm)
    elements = prod(op.shape)
    width = np.dtype(op.dtype).itemsize
    with prim_func("permute") as signature:
        source = signature.input(OWN_INPUTS[0], (elements,), op.dtype)
        target = signature.output(0, (elements,), op.dtype)
        piece = min(PIECE // width, 2 * lanes)  # few lanes, few registers: C and CPUs without vectors
        wide = min(lanes * 4 // width, piece) if lanes == 4 else lanes * 4 // width
        permute(Task(source, target, axes, 1 if lanes == 1 else wide, piece, width))
    return signature.built()


vector_rows("permute", Permute, build)
