"""Integer products for Arm's DSP extension: two products of 16-bit halves an instruction, sums in int32.

A block of rows (of a convolution: patches) is widened to words of two activations, a panel of columns decoded from its
own bits to words of two weights; tiles of 4 rows x 2 columns then take three loads of two words and eight
multiply-accumulates a step (with eight sums and two pointers, all of Thumb's registers: c_prelude.py keeps gcc from
needing more), and the epilogue follows while their sums are in registers. Where the number of channels is a multiple of
4, activations are read as words, and a pair is bytes 0 and 2 or 1 and 3 of one: weights are in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.im2col import Matrices, matrices_of
from subbyte.tvm_kernels.kernels.any_cpu.portable import bytes_too_many
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import smallest_integer
from subbyte.tvm_kernels.kernels.arm_dsp.int16_pairs import (
    Words,
    declare_decoder,
    dot,
    even_bytes,
    odd_bytes,
    pairs_in_word,
    words_in,
)
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import Codes, Conv2d, Product

BLOCK_BYTES = 2048  # of widened activations
PANEL_BYTES = 1024  # of decoded weights; at least two columns
MOST_ROWS = 32
MOST_COLUMNS = 8
ROWS, COLUMNS = 4, 2  # of a tile
UNROLL = 4


def refuses_pairs(op: Product[Codes, LowBitTensor]) -> str | None:
    """Why products of pairs do not support `op`, in one clause."""
    if op.group_size:
        return "scales by group"
    if op.right.zero_point is not None:
        return "weights have zero points"
    if smallest_integer(op.right.format.integer_levels.values) == "int32":
        return f"levels of {op.right.format.name} need more than 16 bits"
    return bytes_too_many(op)


def quad_order(depth: int) -> list[int]:
    """The order of a depth, a multiple of 4, in pairs of a word's bytes: 0 2, 1 3."""
    return [first + k for first in range(0, depth, 4) for k in (0, 2, 1, 3)]


@dataclass(frozen=True)
class _Tiling:
    """The tiling of rows, columns and depth."""

    pairs: int  # words of a row
    rows: int  # of a tile
    block: int
    blocks: int
    panel: int  # columns
    panels: int


def _tiling(shape: Matrices) -> _Tiling:
    pairs = -(-shape.depth // 2)
    rows = min(ROWS, shape.rows)
    most = max(rows, min(MOST_ROWS, BLOCK_BYTES // (pairs * 4)) // rows * rows)
    blocks = -(-shape.rows // most)
    block = -(-shape.rows // (blocks * rows)) * rows
    even = -(-shape.columns // COLUMNS) * COLUMNS
    panel = max(COLUMNS, min(MOST_COLUMNS, even, PANEL_BYTES // (pairs * 4) // COLUMNS * COLUMNS))
    return _Tiling(pairs, rows, block, -(-shape.rows // block), panel, -(-shape.columns // panel))


def _ordered(op: Product[Codes, LowBitTensor], shape: Matrices, tiling: _Tiling, quads: bool) -> npt.NDArray[np.uint8]:
    """Codes as streams [groups * panels, pairs, 2]: for each two columns, each pair of the depth of both."""
    codes = np.zeros((shape.groups, tiling.panels * tiling.panel, tiling.pairs * 2), np.uint8)
    raw = op.right.payload.codes.reshape(shape.groups, shape.columns, shape.depth)
    codes[:, : shape.columns, : shape.depth] = raw[:, :, quad_order(shape.depth)] if quads else raw
    split = codes.reshape(-1, tiling.panel // COLUMNS, COLUMNS, tiling.pairs, 2)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4)).reshape(
        shape.groups * tiling.panels, tiling.panel * tiling.pairs, 2
    )


def _starts(
    op: Product[Codes, LowBitTensor], shape: Matrices, tiling: _Tiling, zero_point: int
) -> npt.NDArray[np.int32]:
    """-zero_point x sum of weights, for each column of each panel: sums are of raw bytes."""
    starts = np.zeros((shape.groups, tiling.panels * tiling.panel), np.int32)
    starts[:, : shape.columns] = -zero_point * op.right.sums(shape.depth).reshape(shape.groups, shape.columns)
    return starts.reshape(-1)


@kernel("dsp", serves=Product[Codes, LowBitTensor], needs={"dsp"}, prefer=20, refuses=refuses_pairs)
def dsp_product(op: Product[Codes, LowBitTensor]) -> Built:
    conv, shape = op.geometry.as_conv(), matrices_of(op.geometry)
    zero_point = op.left.zero_point
    quads = conv.channels % 4 == 0 and (conv.channels // conv.groups) % 4 == 0
    tiling = _tiling(shape)
    each = pairs_in_word(op.right.format.code_bits)
    with prim_func("product") as signature:
        stored = conv.input_pixels * conv.channels
        source = signature.input(OWN_INPUTS[0], (stored,), "uint8")
        decode = declare_decoder(op.right.format, _ordered(op, shape, tiling, quads), signature)
        starts = signature.constant("start", _starts(op, shape, tiling, zero_point)) if zero_point else None
        left_words = -(-tiling.block * tiling.pairs // 2) * 2
        right_words = -(-tiling.panel * tiling.pairs // each) * each
        scratch = signature.workspace((left_words + right_words) * 4)
        epilogue = EpilogueEmitter(op.epilogue, shape.rows, shape.columns * shape.groups, signature)
        left = words_in(scratch, left_words)
        right = words_in(scratch, right_words, left_words * 4)
        widen = _Widen(conv, shape, tiling, source, zero_point, quads, scratch)
        with T.parallel(0, tiling.blocks) as t:
            first = T.bind(t * tiling.block)
            count = T.bind(T.min(tiling.block, shape.rows - first))
            tiles = T.bind((count + tiling.rows - 1) // tiling.rows)

            def row_of(m: Any, r: Any) -> Any:
                """A row of a tile; the last tile, if it is not whole, repeats the last row."""
                row = m * tiling.rows + r
                return first + (T.min(row, count - 1) if shape.rows % tiling.rows else row)

            with T.serial(0, shape.groups) as group:
                with T.serial(0, tiles) as m, T.serial(0, tiling.rows) as r:
                    widen.row(T.bind(row_of(m, r)), group, m, r)
                with T.serial(0, tiling.panels) as p:
                    panel = T.bind(group * tiling.panels + p)
                    decode(panel, right.one)
                    wanted = T.min(tiling.panel, shape.columns - p * tiling.panel)
                    with T.serial(0, (wanted + COLUMNS - 1) // COLUMNS) as c:
                        column = T.bind(p * tiling.panel + c * COLUMNS)
                        begins = [0] * COLUMNS
                        if starts is not None:
                            begins = [T.bind(starts[panel * tiling.panel + c * COLUMNS + n]) for n in range(COLUMNS)]
                        with T.serial(0, tiles) as m:
                            totals = _tile(tiling, left, right, m, c, begins)
                            for n in range(COLUMNS):
                                for r in range(tiling.rows):
                                    position = (row_of(m, r), group * shape.columns + column + n)
                                    if n == 0 or shape.columns % COLUMNS == 0:
                                        epilogue.emit(totals[r][n][0], *position)
                                    else:
                                        with T.If(column + n < shape.columns), T.Then():
                                            epilogue.emit(totals[r][n][0], *position)
    return signature.built()


def _tile(tiling: _Tiling, left: Words, right: Words, m: Any, c: Any, begins: list[Any]) -> list[list[Any]]:
    """The sums [row][column] of a tile, each a buffer of one."""
    totals = [[T.alloc_buffer((1,), "int32") for _ in range(COLUMNS)] for _ in range(tiling.rows)]
    for of_row in totals:
        for total, begin in zip(of_row, begins, strict=True):
            T.buffer_store(total, begin if not isinstance(begin, int) else T.int32(begin), [0])
    left_at = T.bind(m * (tiling.rows * tiling.pairs))
    right_at = T.bind(c * (COLUMNS * tiling.pairs))

    def step(k: Any) -> None:
        weights = list(right.load(right_at + k * COLUMNS, COLUMNS))
        for activation, of_row in zip(left.load(left_at + k * tiling.rows, tiling.rows), totals, strict=True):
            for total, weight in zip(of_row, weights, strict=True):
                T.buffer_store(total, dot(total[0], activation, weight), [0])

    if tiling.pairs >= UNROLL:
        with T.serial(0, tiling.pairs // UNROLL) as chunk:
            for k in range(UNROLL):
                step(chunk * UNROLL + k)
    for k in range(tiling.pairs // UNROLL * UNROLL, tiling.pairs):
        step(k)
    return totals


@dataclass(frozen=True)
class _Widen:
    """Copies rows of the left operand to words of two activations, [tile][pair][row of the tile]."""

    conv: Conv2d
    shape: Matrices
    tiling: _Tiling
    source: Any
    zero_point: int
    quads: bool
    scratch: Any

    def row(self, row: Any, group: Any, m: Any, r: Any) -> None:
        """Emit the copy of one row (of a convolution: the patch of an output pixel) as row `r` of tile `m`."""
        conv, tiling = self.conv, self.tiling
        run = (conv.channels // conv.groups) // 4 if self.quads else conv.channels // conv.groups
        per_pixel = conv.channels // 4 if self.quads else conv.channels
        base = T.bind(m * (tiling.rows * tiling.pairs) + r)
        copy = self._words if self.quads else self._bytes
        if not self.shape.gathered:
            copy(base, 0, row * per_pixel, run)
            self._last(base)
            return
        ox = T.bind(row % conv.out_width)
        out_row = T.bind(row // conv.out_width)
        left = T.bind(ox * conv.stride[1] - conv.padding[1])
        top = T.bind((out_row % conv.out_height) * conv.stride[0] - conv.padding[0])
        image = T.bind(out_row // conv.out_height)
        with T.serial(0, conv.kernel[0]) as ky, T.serial(0, conv.kernel[1]) as kx:
            iy = T.bind(top + ky * conv.dilation[0])
            ix = T.bind(left + kx * conv.dilation[1])
            to = T.bind((ky * conv.kernel[1] + kx) * run)
            inside = T.And(T.And(iy >= 0, iy < conv.height), T.And(ix >= 0, ix < conv.width))
            with T.If(inside):
                with T.Then():
                    copy(base, to, ((image * conv.height + iy) * conv.width + ix) * per_pixel + group * run, run)
                with T.Else():
                    copy(base, to, None, run)
        self._last(base)

    def _words(self, base: Any, to: Any, begin: Any, run: int) -> None:
        """Four activations at a time to two words; padding where `begin` is None."""
        words = view(self.source, (int(self.source.shape[0]) // 4,), "uint32")
        left = view(self.scratch, (self.tiling.block * self.tiling.pairs,), "uint32")
        rows = self.tiling.rows
        start = None if begin is None else T.bind(begin)
        with T.serial(0, run) as q:
            four = T.uint32(self.zero_point * 0x01010101) if start is None else T.bind(words[start + q])
            T.buffer_store(left, even_bytes(four), [base + (to + q) * 2 * rows])
            T.buffer_store(left, odd_bytes(four), [base + ((to + q) * 2 + 1) * rows])

    def _bytes(self, base: Any, to: Any, begin: Any, run: int) -> None:
        halves = view(self.scratch, (self.tiling.block * self.tiling.pairs * 2,), "uint16")
        start = None if begin is None else T.bind(begin)
        with T.serial(0, run) as i:
            value = T.uint16(self.zero_point) if start is None else T.Cast("uint16", self.source[start + i])
            k = T.bind(to + i)
            T.buffer_store(halves, value, [(base + k // 2 * self.tiling.rows) * 2 + k % 2])

    def _last(self, base: Any) -> None:
        """Write 0 to the unused half of the last word of an odd depth."""
        if self.shape.depth % 2:
            halves = view(self.scratch, (self.tiling.block * self.tiling.pairs * 2,), "uint16")
            T.buffer_store(halves, T.uint16(0), [(base + (self.tiling.pairs - 1) * self.tiling.rows) * 2 + 1])
