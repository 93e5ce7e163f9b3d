"""A register tile of a float32 matrix product, and the tiling of a product.

A tile is `rows` x `vectors` accumulators of `lanes` floats. Each step of the reduction loads one vector of every column
group and broadcasts one element of every row; LLVM fuses the multiplication and the addition.

Measured on one core with AVX-512 of a busy two-core Xeon, 6 x 4 x 16 at 197x384x384, shortest of 300 interleaved calls,
four runs: 181 to 194 GFLOP/s, 83 to 86% of the rate of 24 independent chains of llvm.fma in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import at
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.vectors import splat

MACS_PER_TILE = 200_000  # below, distributing over threads costs more than it gains
MOST_TILES = 16


@dataclass(frozen=True)
class Registers:
    """The largest tile that fits the registers of a CPU."""

    lanes: int
    rows: int
    vectors: int
    patch_bytes: int  # of one block of a convolution's patches, a part of the L2 cache or of a microcontroller's memory


AVX512 = Registers(16, 6, 4, 1 << 18)
AVX2 = Registers(8, 6, 2, 1 << 17)
VECTOR128 = Registers(4, 6, 4, 1 << 16)  # 32 registers of four floats: NEON; LLVM splits it elsewhere
SCALAR = Registers(1, 2, 4, 1 << 13)  # C sources


@dataclass(frozen=True)
class ColumnPanels:
    """Columns in `wide` panels of `vectors` vectors, then `narrow` panels of one vector less; the last is padded."""

    lanes: int
    vectors: int
    wide: int
    narrow: int

    @property
    def padded(self) -> int:
        return self.lanes * (self.wide * self.vectors + self.narrow * (self.vectors - 1))

    def parts(self) -> list[tuple[int, int, int]]:
        """(number of panels, columns of each, first column) of the wide and of the narrow panels."""
        wide = self.vectors * self.lanes
        parts = [(self.wide, wide, 0), (self.narrow, wide - self.lanes, self.wide * wide)]
        return [part for part in parts if part[0]]

    def channels(self, width: int, columns: int) -> int:
        """How many of the product's `columns` columns are in the last panel of that width."""
        return width - (self.padded - columns if width == self.parts()[-1][1] else 0)


def panels(columns: int, registers: Registers) -> ColumnPanels:
    """Cut columns into panels of nearly equal width."""
    vectors = -(-columns // registers.lanes)
    count = -(-vectors // registers.vectors)
    widest = -(-vectors // count)
    wide = vectors - count * (widest - 1)
    return ColumnPanels(registers.lanes, widest, wide, count - wide)


def tile_rows(rows: int, registers: Registers) -> int:
    """Rows of a tile: as many as fit the registers, fewer if that wastes less at the end."""
    if rows <= registers.rows:
        return rows
    return min(range(registers.rows, max(registers.rows // 2, 1), -1), key=lambda r: -(-rows // r) * (r + 2))


def pack_panels(matrix: npt.NDArray[Any], cut: ColumnPanels) -> npt.NDArray[Any]:
    """[columns, depth] to panels one after another, each [depth, its columns], padded with zeros; flat."""
    columns, depth = matrix.shape
    padded = np.zeros((cut.padded, depth), matrix.dtype)
    padded[:columns] = matrix
    pieces = []
    for count, width, first in cut.parts():
        part = padded[first : first + count * width].reshape(count, width, depth)
        pieces.append(np.ascontiguousarray(part.transpose(0, 2, 1)).ravel())
    return np.concatenate(pieces)


def rows_per_block(rows: int, per_tile: int, macs_per_row: int, most: int) -> int:
    """Rows of a parallel block: a multiple of the tile's rows, at most `most`, with enough work for a thread."""
    tiles = -(-rows // per_tile)
    enough = max(1, MACS_PER_TILE // max(1, macs_per_row * per_tile))
    wanted = max(enough, -(-tiles // MOST_TILES))
    blocks = -(-tiles // min(wanted, max(1, most // per_tile)))
    return -(-tiles // blocks) * per_tile


def multiply(
    rows: int,
    vectors: int,
    lanes: int,
    depth: Any,
    left: Callable[[int, Any], Any],
    right: Callable[[int, Any], Any],
    target: Any,
) -> None:
    """Emit target[rows * vectors * lanes] = sum over k of left(row, k) x right(vector, k), in registers."""
    lane = [at(0, lanes)]
    sums = [[T.alloc_buffer((lanes,), "float32") for _ in range(vectors)] for _ in range(rows)]
    for row in sums:
        for one in row:
            T.buffer_store(one, splat(T.float32(0), lanes), lane)
    with T.serial(0, depth) as k:
        loaded = [T.bind(right(v, k)) for v in range(vectors)]
        for r in range(rows):
            element = T.bind(splat(left(r, k), lanes))
            for v in range(vectors):
                T.buffer_store(sums[r][v], sums[r][v][lane[0]] + element * loaded[v], lane)
    for r in range(rows):
        for v in range(vectors):
            T.buffer_store(target, sums[r][v][lane[0]], [at((r * vectors + v) * lanes, lanes)])


def multiply_rows(
    count: Any,
    per_tile: int,
    width: int,
    lanes: int,
    depth: int,
    left: Any,
    left_row: Any,
    right: Callable[[int, Any], Any],
    tile: Any,
    store: Callable[[Any, Callable[[Any, int], Any]], None],
    *,
    whole_tiles: bool = False,
) -> None:
    """Emit `count` rows of left [rows, depth], from left_row on, times one panel of `width` columns, tile by tile.

    store(row, load) follows for each row, counted from the first, while its tile is in L1: load(offset, lanes) returns
    its accumulators. The last tile overlaps the one before and stores only its own rows, unless `whole_tiles`: then
    `left` is large enough for whole tiles.
    """
    with T.serial(0, (count + per_tile - 1) // per_tile) as m:
        begin = T.bind(m * per_tile if whole_tiles else T.min(m * per_tile, count - per_tile))
        base = T.bind((left_row + begin) * depth)
        multiply(per_tile, width // lanes, lanes, depth, lambda r, k: left[base + r * depth + k], right, tile)
        with T.serial(m * per_tile - begin, T.min(per_tile, count - begin)) as r:

            def load(offset: Any, n: int) -> Any:
                return tile[at(r * width + offset, n)]

            store(begin + r, load)


def store_panel(
    epilogue: EpilogueEmitter,
    load: Callable[[Any, int], Any],
    row: Any,
    first_column: Any,
    column: Any,
    width: int,
    columns: int,
    short: int,
    lanes: int,
) -> None:
    """Emit the epilogue of one row of a panel: `width` channels from first_column + column on.

    load(offset, lanes) returns accumulators; the panel that extends beyond `columns` has only `short` channels.
    """

    def emit(count: int) -> None:
        if lanes > 1:
            epilogue.emit_channels(load, row, first_column + column, count, lanes)
            return
        with T.serial(0, count) as c:
            epilogue.emit(load(c, 1), row, first_column + column + c)

    if short == width:
        emit(width)
        return
    with T.If(column + width <= columns):
        with T.Then():
            emit(width)
        with T.Else():
            emit(short)


def tiled_rows(
    name: str,
    serves: type,
    build: Callable[[Any, Registers], Built],
    refuses: Callable[[Any], str | None] = lambda op: None,
) -> None:
    """Register `build(op, registers)` for AVX-512, AVX2, and any CPU."""

    def add(suffix: str, needs: set[str], order: int, registers: Registers) -> None:
        def made(op: Any) -> Built:
            return build(op, SCALAR if current_code_generator() == "c" else registers)

        kernel(f"{name}-{suffix}", serves=serves, needs=needs, prefer=order, refuses=refuses)(made)

    add("avx512", {"avx512f"}, 100, AVX512)
    add("avx2", {"avx2", "fma"}, 80, AVX2)
    add("portable", set(), 0, VECTOR128)
