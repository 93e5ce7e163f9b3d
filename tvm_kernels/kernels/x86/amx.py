"""Products in AMX's tile registers: 16 x 16 int32 sums, and one instruction for up to 16 x 64 x 16 products.

A tile of activations is `rows` output positions x `chunk` bytes of the reduction; the positions are neighbours in a row
of the image, or rows of a matrix, so that they are a constant stride apart. A tile of weights is chunk / 4 steps of a
panel in the layout of panels.py. Four tiles are for sums, the other four for operands:

    parts of the reduction, so small that their weights stay in the first-level cache               (amx_shape.py)
      register tiles
        sums = start (a tile load with stride 0; zero points as in product.py), or the sums of the part before
        window rows, chunks: load activations, load weights, multiply and add
        store the sums to the workspace; after the last part the epilogue reads them there, position by position

The last positions of a row are computed together with some before them, which are not stored again. Binary values are
bytes here: 0 and 1 for activations (padded_input.py), -2 and +2 for weights, and sums start at -sum(w).
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. Measured: benchmarks/kernels.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Ramp

from subbyte.runtime.features import TILE_FEATURES
from subbyte.tvm_kernels.kernels.tir.signature import Signature, view
from subbyte.tvm_kernels.kernels.x86.amx_shape import ROW_BYTES, SUMS, TILES, Shape, run_count, shape_of
from subbyte.tvm_kernels.kernels.x86.instructions import STEP_BYTES, VNNI_512
from subbyte.tvm_kernels.kernels.x86.product import Cut, PanelTile, ProductBuilder, loop
from subbyte.tvm_kernels.kernels.x86.tiling import TILE_MACS, Positions

FEATURES = TILE_FEATURES | {"avx512bw"}


class AmxProduct(ProductBuilder):
    """The product builder with tile registers in its inner loops."""

    by_rows = True  # memory-bound: 1.3 times as fast on two threads (with vector registers: slower)

    @property
    def tile_macs(self) -> int:
        """Those of a tile that takes about 8 us, or 25 us with binary values, which are unpacked to bytes."""
        return (8 if self.operands.unpacked == 1 else 4) * TILE_MACS

    @property
    def parts(self) -> int:
        return self.shape.parts

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.operands)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the sums of a register tile."""
        return self.shape.blocks * self.shape.rows * self.shape.vectors * ROW_BYTES

    @property
    def scratch_bytes(self) -> int:
        """Sums of one register tile, or of all tiles of a panel, where the reduction has several parts."""
        if self.shape.parts == 1:
            return self.kept_bytes
        if self.shape.flat:
            positions = (self.tiles.row_groups - 1) * self.window.padded_width + self.window.out_width
            return -(-positions // (self.shape.blocks * self.shape.rows)) * self.kept_bytes
        return (self.row_groups if self.panels_first else self.tiles.row_groups) * self.across * self.kept_bytes

    @property
    def across(self) -> int:
        """Register tiles along a row of the output."""
        return -(-self.window.out_width // self.positions.width)

    @property
    def overread(self) -> int:
        """The last tile may read past the copy, where no positions before it can complete it."""
        shape, layout = self.shape, self.layout
        if shape.flat:
            return shape.blocks * shape.rows * layout.pixel
        return shape.rows * layout.row * self.window.stride[0] if self.window.out_width == 1 else 0

    def cut(self) -> Cut:
        window, shape = self.window, self.shape
        most = shape.rows * shape.blocks
        if window.out_width == 1:
            positions = Positions(min(most, window.out_height), 1)
        elif shape.flat:
            positions = Positions(1, window.out_width)
        elif window.out_width <= shape.rows:
            positions = Positions(min(shape.blocks, window.out_height), window.out_width)
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

    def all_rows(self, panel: PanelTile) -> None:
        if not self.shape.flat:
            super().all_rows(panel)
            return
        inner = AmxTile(self, panel)
        positions = (self.groups - 1) * self.window.padded_width + self.window.out_width
        most = self.shape.rows * self.shape.blocks
        with loop((positions + most - 1) // most) as index:
            inner.emit_flat(index, index * most if isinstance(index, int) else T.bind(index * most))

    def register_tile(self, panel: PanelTile) -> AmxTile:
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

    offset: bytes from the register tile's base; first: the register tile's position that is the first here, may be
    negative; skip, stop: positions skip .. stop - 1 are stored, those before are another tile's.
    """

    offset: int
    first: int
    skip: int
    stop: int


class AmxTile:
    """Emits the inner loops and the epilogue of a few tiles of activations x a panel."""

    def __init__(self, product: AmxProduct, panel: PanelTile) -> None:
        self.product, self.panel, self.shape = product, panel, product.shape

    def emit(self, row: Any, start: Any, height: int, width: int) -> None:
        """Compute `height` x `width` positions from output row `row` of the tile and position `start` of the row."""
        product, window, layout = self.product, self.product.window, self.product.layout
        blocks: list[_Block] = []
        if window.out_width == 1:
            stride = window.stride[0] * layout.row
            # A copy may have no positions before this one, but may be read past its end (`overread`).
            blocks = self._along(height, stride, not product.input.needed, 0, 0)
        else:
            stride = window.stride[1] * layout.pixel
            for y in range(height):
                blocks += self._along(width, stride, True, y * window.stride[0] * layout.row, y * window.out_width)
        offset = row * (window.stride[0] * layout.row) + start * (window.stride[1] * layout.pixel)
        cut = product.positions
        before = product.first_group if product.panels_first else 0  # the sums of all tiles are kept for the next part
        self._at((before + row // cut.height) * product.across + start // cut.width)
        output = (product.image * window.out_height + product.first_row + row) * window.out_width + start
        output = output if isinstance(output, int) else T.bind(output)
        self._window(offset, stride, blocks, output, height * width)
        with self._last_part():
            for index, block in enumerate(blocks):
                with T.serial(block.skip, block.stop) as position:
                    self._store(index, position, output + block.first + position)

    def emit_flat(self, number: Any, first: Any) -> None:
        """Compute the positions from `first` on, counted through the padded rows of the tile; store all but padding."""
        product, window, rows = self.product, self.product.window, self.shape.rows
        pixel = product.layout.pixel
        blocks = [_Block(index * rows * pixel, index * rows, 0, rows) for index in range(self.shape.blocks)]
        self._at(number)
        self._window(first * pixel, pixel, blocks, 0, 0)
        with self._last_part():
            image_row = product.image * window.out_height + product.first_row
            for index, block in enumerate(blocks):
                with T.serial(0, rows) as position:
                    at = T.bind(first + block.first + position)
                    y, x = T.bind(at // window.padded_width), T.bind(at % window.padded_width)
                    with T.If(T.And(x < window.out_width, y < product.groups)), T.Then():
                        self._store(index, position, T.bind((image_row + y) * window.out_width + x))

    def _at(self, number: Any) -> None:
        """Set the offset of the sums of register tile `number` of the panel, in int32 elements."""
        first = number * (self.product.kept_bytes // 4) if self.shape.parts > 1 else 0
        self.first = first if isinstance(first, int) else T.bind(first)

    @contextmanager
    def _last_part(self) -> Iterator[None]:
        if self.shape.parts == 1:
            yield
        else:
            with T.If(self.product.part == self.shape.parts - 1), T.Then():
                yield

    def _along(self, length: int, stride: int, back: bool, offset: int, first: int) -> list[_Block]:
        rows = self.shape.rows
        blocks = []
        for start in range(0, length, rows):
            skip = max(0, start + rows - length) if back else 0
            stop = rows if back else min(rows, length - start)
            blocks.append(_Block(offset + (start - skip) * stride, first + start - skip, skip, stop))
        return blocks

    # ---- the reduction ----

    def _window(self, offset: Any, stride: int, blocks: list[_Block], output: Any, positions: int) -> None:
        """The window positions and channels of one part, for positions `stride` bytes apart from byte `offset` on.

        The rows of the output from `output` on, which the epilogue accesses next, are prefetched.
        """
        product, window, layout, shape = self.product, self.product.window, self.product.layout, self.shape
        base = product.origin + offset + self.panel.group * layout.group
        base = base if isinstance(base, int) else T.bind(base)
        self._begin(len(blocks))
        chunks, first_chunk = shape.chunks // shape.splits, product.part % shape.splits
        first_row = product.part // shape.splits
        step_bytes = self.panel.vectors * ROW_BYTES
        window_rows, runs = window.kernel[0] if shape.parts == 1 else 1, run_count(window)
        with loop(window_rows) as y, loop(runs) as x:
            at = base + (first_row + y) * (window.dilation[0] * layout.row) + x * (window.dilation[1] * layout.pixel)
            at = at + first_chunk * (chunks * shape.chunk)
            at = at if isinstance(at, int) else T.bind(at)
            step = y * (window.kernel[1] * product.steps_per_tap) + x * product.steps_per_tap
            weights = self.panel.weights + step * step_bytes
            weights = weights if isinstance(weights, int) else T.bind(weights)
            size = shape.chunk // STEP_BYTES * step_bytes
            with loop(chunks) as chunk:
                rows = -(-positions // (chunks * runs * window_rows))
                for index in range(rows):
                    iteration = ((y * runs + x) * chunks + chunk) * rows + index
                    product.epilogue.prefetch(output + iteration, self.panel.column, self.panel.columns)
                self._chunk(blocks, stride, at + chunk * shape.chunk, weights + chunk * size)
        for index in range(len(blocks)):
            for vector in range(self.panel.vectors):
                sums = T.address_of(self.product.sums[self._offset(index, 0, vector)])
                _emit("tilestored64", self._sums(index, vector), sums, IntImm("int64", step_bytes))

    def _begin(self, blocks: int) -> None:
        """Load the initial sums, or those of the part before."""

        def load(stride: int, first: Callable[[int, int], Any]) -> None:
            for index in range(blocks):
                for vector in range(self.panel.vectors):
                    address = T.address_of(first(index, vector))
                    _emit("tileloadd64", self._sums(index, vector), address, IntImm("int64", stride))

        def start(index: int, vector: int) -> Any:
            return self.product.start[0, self.panel.column + vector * VNNI_512.lanes]

        if self.shape.parts == 1:
            load(0, start)
            return
        with T.If(self.product.part == 0):
            with T.Then():
                load(0, start)
            with T.Else():
                load(
                    self.panel.vectors * ROW_BYTES,
                    lambda index, vector: self.product.sums[self._offset(index, 0, vector)],
                )

    def _sums(self, index: int, vector: int) -> Any:
        return _tile(index * self.panel.vectors + vector)

    def _chunk(self, blocks: list[_Block], stride: int, at: Any, weights: Any) -> None:
        """One chunk: every tile of activations times the weights of every vector."""
        product, vectors = self.product, self.panel.vectors
        operands = range(SUMS + self.shape.vectors, TILES)
        for vector in range(vectors):
            _load(SUMS + vector, product.operand[weights + vector * ROW_BYTES], vectors * ROW_BYTES)
        for index, block in enumerate(blocks):
            activations = operands[index % len(operands)]
            _load(activations, product.read[at + block.offset], stride)
            for vector in range(vectors):
                _emit("tdpbusd", self._sums(index, vector), _tile(activations), _tile(SUMS + vector))

    # ---- the epilogue ----

    def _offset(self, index: int, position: Any, vector: int) -> Any:
        lanes = VNNI_512.lanes
        within = index * (self.shape.rows * self.shape.vectors * lanes)
        return self.first + within + (position * self.panel.vectors + vector) * lanes

    def _store(self, index: int, position: Any, row: Any) -> None:
        """The epilogue of one position of a tile, which is row `row` of the output."""
        product, lanes = self.product, VNNI_512.lanes
        finish = product.operands.finish or (lambda total: total)
        for vector in range(self.panel.vectors):
            start = T.bind(self._offset(index, position, vector))

            def load(offset: int, width: int, start: Any = start) -> Any:
                at = start + offset
                return finish(product.sums[at if width == 1 else Ramp(at, 1, width)])

            count = min(lanes, self.panel.columns - vector * lanes)
            product.epilogue.emit_channels(load, row, self.panel.column + vector * lanes, count, lanes)
