"""Products in AMX's tile registers: 16 x 16 int32 sums, and one instruction for up to 16 x 64 x 16 products.

A tile of activations is `rows` output positions x `chunk` bytes of the reduction; the positions are neighbours in a row
of the image, or rows of a matrix, so that one stride leads from each to the next. A tile of weights is chunk / 4 steps
of a panel as panels.py lays it out. Four tiles hold sums, the other four operands:

    sums = start                        (a tile load with stride 0: zero points, as in product.py)
    window rows, chunks: load activations, load weights, multiply and add
    store the sums to the workspace; the epilogue reads them there, position by position

The last positions of a row are computed together with some before them, which are not stored again. Signs are bytes
here: 0 and 1 for activations (padded_input.py), -2 and +2 for weights, sums that start at -sum(w).
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. Measured: benchmarks/kernels.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Ramp

from subbyte.tvm_kernels.kernels.operands import Operands
from subbyte.tvm_kernels.kernels.padded_input import Layout
from subbyte.tvm_kernels.kernels.product import Cut, ProductBuilder
from subbyte.tvm_kernels.kernels.register_tile import PanelTile, loop
from subbyte.tvm_kernels.kernels.signature import Signature, view
from subbyte.tvm_kernels.kernels.tiling import TILE_MACS, Positions, Window
from subbyte.tvm_kernels.kernels.x86 import STEP_BYTES, VNNI_512

FEATURES = frozenset({"amxtile", "amxint8", "avx512bw"})
ROWS = 16  # of a tile
ROW_BYTES = 64
TILES = 8
SUMS = 4  # tiles of sums
WORDS = 32  # signs in a word


@dataclass(frozen=True)
class Shape:
    """Tile registers for one product: bytes of a row of activations, positions in a tile, vectors of channels.

    rounded: bytes of activations of a channel group of one place, after unpacking.
    """

    chunk: int
    chunks: int  # in a run of neighbouring window places
    rows: int
    vectors: int
    rounded: int

    @property
    def positions(self) -> int:
        """Tiles of activations that are multiplied with the same weights."""
        return SUMS // self.vectors

    def configuration(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What LDTILECFG reads: palette 1, then bytes of a row (uint16) and rows of each tile."""
        table = np.zeros(64, np.uint8)
        table[0] = 1
        row_bytes, rows = table[16:32].view(np.uint16), table[48:56]
        row_bytes[:], rows[:] = ROW_BYTES, self.rows
        rows[SUMS : SUMS + self.vectors] = self.chunk // STEP_BYTES
        row_bytes[SUMS + self.vectors :] = self.chunk
        return table


def _merged(window: Window) -> bool:
    """Whether the window places of a row lie side by side."""
    return window.groups == 1 and (window.dilation[1] == 1 or window.kernel[1] == 1)


def _chunks(run: int) -> int:
    """The smallest number of equal chunks that cut `run` bytes into tile rows."""
    count = -(-run // ROW_BYTES)
    while run % count or run // count % STEP_BYTES:
        count += 1
    return count


def shape_of(operands: Operands) -> Shape:
    """The shape with the fewest tiles; rounding channels up is a copy of the input, but often fewer tiles."""
    window = operands.window
    stored = window.channels // window.groups * operands.unpacked
    merged = window.kernel[1] if _merged(window) else 1
    step = STEP_BYTES if operands.unpacked == 1 else WORDS
    first = -(-stored // step) * step
    rounded = min(range(first, first + ROW_BYTES, step), key=lambda rounded: (_chunks(merged * rounded), rounded))
    chunks = _chunks(merged * rounded)
    length = window.out_height if window.out_width == 1 else window.out_width
    rows = -(-length // -(-length // ROWS))
    vectors = min(2, -(-window.out_channels // window.groups // VNNI_512.lanes))
    return Shape(merged * rounded // chunks, chunks, rows, vectors, rounded)


def fullness(operands: Operands) -> float:
    """The part of the products in the tiles that is asked for; 1 where rows, chunks and channels all fill them."""
    window, shape = operands.window, shape_of(operands)
    length = window.out_height if window.out_width == 1 else window.out_width
    channels = window.out_channels // window.groups
    depth = window.channels // window.groups * operands.unpacked
    merged = window.kernel[1] if _merged(window) else 1
    rows = length / (-(-length // shape.rows) * ROWS)
    columns = channels / (-(-channels // VNNI_512.lanes) * VNNI_512.lanes)
    return rows * columns * depth * merged / (shape.chunks * ROW_BYTES)


def too_empty(operands: Operands, least: float) -> str | None:
    """The reason not to use tiles where less than that part of them would be full; for a row's `refuses`."""
    full = fullness(operands)
    return (
        f"its tiles would be {100 * full:.0f}% full, and below {100 * least:.0f}% they are slower"
        if full < least
        else None
    )


class AmxProduct(ProductBuilder):
    """The product builder with tile registers inside."""

    tile_macs = 8 * TILE_MACS

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.operands)

    @cached_property
    def scratch_bytes(self) -> int:  # type: ignore[override]
        return self.shape.positions * self.shape.rows * self.shape.vectors * ROW_BYTES

    @property
    def overread(self) -> int:
        """A copy may end before the last position of a tile that has no positions before it to go back to."""
        return self.shape.rows * self.layout.row * self.window.stride[0] if self.window.out_width == 1 else 0

    def cut(self) -> Cut:
        window, shape = self.window, self.shape
        most = shape.rows * shape.positions
        if window.out_width == 1:
            positions = Positions(min(most, window.out_height), 1)
        elif window.out_width <= shape.rows:
            positions = Positions(min(shape.positions, window.out_height), window.out_width)
        else:
            positions = Positions(1, min(most, window.out_width))
        return Cut(shape.rounded // self.operands.unpacked, positions, shape.vectors)

    def declare(self, signature: Signature) -> None:
        self.configuration = signature.constant("tile configuration", self.shape.configuration())
        at = self.workspace_bytes - self.scratch_bytes
        self.sums = view(self.workspace, (self.scratch_bytes // 4,), "int32", at)

    @contextmanager
    def registers(self) -> Iterator[None]:
        _emit("ldtilecfg", T.address_of(self.configuration[0]))
        yield
        _emit("tilerelease")

    def inner(self, panel: PanelTile) -> AmxTile:  # type: ignore[override]
        return AmxTile(self, panel)


def _emit(name: str, *operands: Any) -> None:
    T.evaluate(T.call_llvm_intrin("", f"llvm.x86.{name}", *operands))


def _tile(number: int) -> Any:
    return IntImm("int8", number)


def _load(tile: int, first: Any, stride: int) -> None:
    _emit("tileloadd64", _tile(tile), T.address_of(first), IntImm("int64", stride))


@dataclass(frozen=True)
class _Block:
    """Positions of one tile of activations.

    offset: bytes from the register tile's base; first: which position of the register tile is the first, may be
    negative; skip: that many are another tile's; stop: where those end that are there to be stored.
    """

    offset: int
    first: int
    skip: int
    stop: int


class AmxTile:
    """Emits the inner loops and the epilogue of a few tiles of activations x a panel."""

    def __init__(self, product: AmxProduct, panel: PanelTile) -> None:
        self.product, self.panel, self.shape = product, panel, product.shape

    def emit(self, row: Any, place: Any, height: int, width: int) -> None:
        """Compute `height` x `width` positions from output row `row` of the tile and place `place` of the row."""
        product, window, layout = self.product, self.product.window, self.product.layout
        base = product.origin + row * (window.stride[0] * layout.row)
        base = base + place * (window.stride[1] * layout.place) + self.panel.group * layout.group
        self.base = base if isinstance(base, int) else T.bind(base)
        blocks = self._blocks(layout, height, width)
        self._window(blocks)
        output = (product.image * window.out_height + product.first_row + row) * window.out_width + place
        output = output if isinstance(output, int) else T.bind(output)
        for index, block in enumerate(blocks):
            self._store(index, block, output + block.first)

    def _blocks(self, layout: Layout, height: int, width: int) -> list[_Block]:
        window = self.product.window
        if window.out_width == 1:
            stride = window.stride[0] * layout.row
            back = not self.product.input.needed  # a copy may have nothing before it, but something behind it
            return self._along(height, stride, back, 0, 0)
        stride = window.stride[1] * layout.place
        blocks = []
        for y in range(height):
            blocks += self._along(width, stride, True, y * window.stride[0] * layout.row, y * window.out_width)
        return blocks

    def _along(self, length: int, stride: int, back: bool, offset: int, first: int) -> list[_Block]:
        rows = self.shape.rows
        blocks = []
        for start in range(0, length, rows):
            skip = max(0, start + rows - length) if back else 0
            stop = rows if back else min(rows, length - start)
            blocks.append(_Block(offset + (start - skip) * stride, first + start - skip, skip, stop))
        return blocks

    # ---- the reduction ----

    def _window(self, blocks: list[_Block]) -> None:
        """All window places and channels."""
        product, window, layout, shape = self.product, self.product.window, self.product.layout, self.shape
        vectors = self.panel.vectors
        for index in range(len(blocks)):
            for vector in range(vectors):
                at = self.panel.column + vector * VNNI_512.lanes
                _load(index * vectors + vector, product.start[0, at], 0)
        merged = _merged(window)
        with loop(window.kernel[0]) as y, loop(1 if merged else window.kernel[1]) as x:
            at = self.base + y * (window.dilation[0] * layout.row) + x * (window.dilation[1] * layout.place)
            at = at if isinstance(at, int) else T.bind(at)
            step = y * (window.kernel[1] * product.steps_place) + x * product.steps_place
            weights = self.panel.weights + step * (vectors * ROW_BYTES)
            weights = weights if isinstance(weights, int) else T.bind(weights)
            size = shape.chunk // STEP_BYTES * vectors * ROW_BYTES
            with loop(shape.chunks) as chunk:
                self._chunk(blocks, at + chunk * shape.chunk, weights + chunk * size)

    def _chunk(self, blocks: list[_Block], at: Any, weights: Any) -> None:
        """One chunk: every tile of activations times the weights of every vector."""
        product, window, vectors = self.product, self.product.window, self.panel.vectors
        layout = product.layout
        stride = window.stride[0] * layout.row if window.out_width == 1 else window.stride[1] * layout.place
        operands = range(SUMS + self.shape.vectors, TILES)
        for vector in range(vectors):
            _load(SUMS + vector, product.operand[weights + vector * ROW_BYTES], vectors * ROW_BYTES)
        for index, block in enumerate(blocks):
            activations = operands[index % len(operands)]
            _load(activations, product.read[at + block.offset], stride)
            for vector in range(vectors):
                _emit("tdpbusd", _tile(index * vectors + vector), _tile(activations), _tile(SUMS + vector))

    # ---- the epilogue ----

    def _store(self, index: int, block: _Block, output: Any) -> None:
        product, vectors, rows = self.product, self.panel.vectors, self.shape.rows
        lanes = VNNI_512.lanes
        first = index * rows * self.shape.vectors * lanes
        for vector in range(vectors):
            at = T.address_of(product.sums[first + vector * lanes])
            _emit("tilestored64", _tile(index * vectors + vector), at, IntImm("int64", vectors * ROW_BYTES))
        finish = product.operands.finish or (lambda total: total)
        with T.serial(block.skip, block.stop) as position:
            for vector in range(vectors):
                count = min(lanes, self.panel.columns - vector * lanes)
                start = T.bind(first + position * (vectors * lanes) + vector * lanes)

                def load(offset: int, width: int, start: Any = start) -> Any:
                    at = start + offset
                    return finish(product.sums[at if width == 1 else Ramp(at, 1, width)])

                column = self.panel.column + vector * lanes
                product.epilogue.emit_channels(load, output + position, column, count, lanes)
