"""The builder of all x86 products: codes or bits times packed weights, matrix product or convolution.

Loops, outermost first:

    parallel  tiles: image, block of output rows, block of panels
      copy the rows of the input that the tile reads, if they cannot be read in place               (padded_input.py)
      and the tile before, of the same rows, has not done so on this thread                         (ONCE of abi.py)
      panels of output channels, or parts of their depth
        decode the panel's weights into the workspace, if they are packed below 8 bits              (panels.py)
        register tiles: a few output positions x a few vectors of channels, int32 accumulators in registers
          window positions, channels: a broadcast for each position, an instruction for each sum    (instructions.py)
          epilogue                                                                                  (epilogue.py)

With `by_rows`, where the input is read in place and there are enough tiles, the loop over panels is the outer one, and
tiles are blocks of rows inside it (TILES of abi.py): a thread decodes a panel once for all its tiles, and reads rows
most of which it has written itself.

Zero points cost nothing at run time: accumulators start at -zero_point x (sum of the channel's weights), and padding
is the zero point. When a tile has one register tile only (a matrix-vector product), the inner loop decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm.script.ir_builder import tirx as T

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.abi import ONCE, TILES
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import Signature, prim_func
from subbyte.tvm_kernels.kernels.x86.instructions import STEP_BYTES, Instruction
from subbyte.tvm_kernels.kernels.x86.operands import Operands
from subbyte.tvm_kernels.kernels.x86.padded_input import (
    BYTE_BITS,
    WORD_BYTES,
    BinarizeBuffers,
    BinarizedInput,
    PaddedInput,
    Strides,
)
from subbyte.tvm_kernels.kernels.x86.panels import decode_panel, pack_panels
from subbyte.tvm_kernels.kernels.x86.tiling import (
    ENOUGH_TILES,
    TILE_MACS,
    Positions,
    Tiles,
    positions_of,
    register_tile,
    tiles_of,
)
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.operators import WORD, Binarized, Bits, Codes, Product


@dataclass(frozen=True)
class Cut:
    """The register tiles of a product: `positions` x `vectors` vectors of channels.

    rounded: elements of a channel group of one pixel, rounded up for the inner loop; inline: whether that loop decodes.
    """

    rounded: int
    positions: Positions
    vectors: int
    inline: bool = False


@contextmanager
def loop(extent: Any) -> Iterator[Any]:
    """A serial loop, or none where it would run just once."""
    if isinstance(extent, int) and extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as index:
            yield index


@dataclass(frozen=True, eq=False)
class PanelTile:
    """A panel for the register tiles: TIR expressions, except the last two fields.

    group: of channels; weights: the byte where its operands start; column: its first output channel; vectors: of
    channels; columns: channels, those of the last vector that do not exist left out.
    """

    group: Any
    weights: Any
    column: Any
    vectors: int
    columns: int


class EmitsTiles(Protocol):
    """The interface of the inner loops of a panel."""

    def emit(self, row: Any, start: Any, height: int, width: int) -> None:
        """Compute `height` x `width` positions from output row `row` of the tile and position `start` of the row."""


class ProductBuilder:
    """Builds one product; see the module's docstring. Its inner loops are those of a subclass."""

    def __init__(
        self,
        op: Product[Codes | Bits | Binarized, LowBitTensor],
        instruction: Instruction,
        operands: Operands,
    ) -> None:
        self.op, self.instruction, self.operands = op, instruction, operands
        self.quantizer = op.left.quantizer if isinstance(op.left, Binarized) else None
        self.window = window = operands.window
        cut = self.cut()
        self.positions, self.inline = cut.positions, cut.inline
        wide, unpacked = instruction.widened, operands.unpacked
        stored = window.channels // window.groups
        rule = PaddedInput if self.quantizer is None else BinarizedInput
        self.input = rule(window, stored, cut.rounded, wide * unpacked, operands.fill)
        depth = cut.rounded * unpacked
        self.panels = pack_panels(operands, depth, cut.vectors, instruction, cut.inline)
        self.row_groups = -(-window.out_height // self.positions.height)
        self.tiles = self._tiles()
        in_place = not self.input.needed and window.batch == window.groups == 1
        self.panels_first = self.by_rows and in_place and self.tiles.column_blocks > 1 and self.row_groups > 1
        if self.panels_first:
            row_groups = -(-self.row_groups // ENOUGH_TILES)
            self.tiles = Tiles(-(-self.row_groups // row_groups), row_groups, 1, self.panels.per_group)
        self.steps_per_tap = depth * wide // STEP_BYTES
        copied = self.input.copied_rows(self.tiles.row_groups * self.positions.height)
        self.layout: Strides = self.input.copy if self.input.needed else self.input.source
        self.copy_bytes = aligned(copied * self.layout.row + self.overread) if self.input.needed else 0
        self.decodes = self.panels.decodes and not self.inline
        decoded = aligned(self.panels.decoded_bytes(self.parts)) if self.decodes else 0
        self.workspace_bytes = self.copy_bytes + decoded + self.scratch_bytes

    # ---- overridden for the registers: register_tile.py, amx.py ----

    by_rows = False  # whether threads should share rows, where they can, rather than panels: then panels are outermost

    @property
    def tile_macs(self) -> int:
        """Multiply-adds of bytes from which on a tile is worth waking a thread for."""
        return TILE_MACS

    @property
    def scratch_bytes(self) -> int:
        """Bytes that register tiles need at the end of the workspace."""
        return 0

    @property
    def parts(self) -> int:
        """Equal parts of the reduction, each done for all rows before the next."""
        return 1

    @property
    def overread(self) -> int:
        """Bytes after a copy of the input that the inner loop may read, and does not use."""
        return 0

    def cut(self) -> Cut:
        """The size of register tiles that takes the least time."""
        window, wide = self.window, self.instruction.widened
        rounded = -(-window.channels // window.groups * wide // STEP_BYTES) * STEP_BYTES // wide
        depth_bytes = window.taps * rounded * wide
        most, vectors = register_tile(self.instruction, window, depth_bytes)
        if self.operands.scale is not None:
            most = max(1, most // 2)
        positions = positions_of(window, most, vectors, self.instruction.operations)
        single = window.out_height <= positions.height and window.out_width <= positions.width
        inline = single and wide == 1 and self.operands.bits < 8
        if inline:
            per = 8 // self.operands.bits
            vectors = -(-vectors // per) * per
        return Cut(rounded, positions, vectors, inline)

    def declare(self, signature: Signature) -> None:
        """Declares parameters that the registers need."""

    @contextmanager
    def registers(self) -> Iterator[None]:
        """Encloses the code of one tile."""
        yield

    def register_tile(self, panel: PanelTile) -> EmitsTiles:
        """The emitter of the register tiles of a panel."""
        raise NotImplementedError

    def _tiles(self) -> Tiles:
        """The tiles of threads; where bits are stored, a word of 32 channels must not be split between tiles."""
        window, panels = self.window, self.panels
        decode = panels.data.size * panels.per_chunk if panels.decodes and not self.inline else 0
        copy = self.input.copy.row * (window.height + 2) if self.input.needed else 0
        total = panels.per_group * window.groups
        words = self.op.epilogue.stores_bits
        splits = not words or (window.groups == 1 and panels.columns % WORD == 0)
        if not splits:
            tiles = tiles_of(window, self.row_groups, 1, copy, decode, self.tile_macs)
            return Tiles(tiles.row_blocks, tiles.row_groups, 1, total)
        return tiles_of(window, self.row_groups, total, copy, decode, self.tile_macs)

    def build(self) -> Built:
        window, tiles = self.window, self.tiles
        with prim_func("kernel", {TILES: tiles.row_blocks} if self.panels_first else {}) as signature:
            self._declare_input(signature)
            self.weight = signature.constant("weight", self.panels.data)
            self.start = signature.constant("start", self.operands.start)
            self.scale: Any = None
            if self.operands.scale is not None:
                self.scale = signature.constant("scale by group", self.operands.scale)
            self.epilogue = EpilogueEmitter(
                self.operands.epilogue, window.pixels, window.out_channels, signature, x86=True
            )
            self.workspace: Any = None
            if self.workspace_bytes:
                self.workspace = signature.workspace(self.workspace_bytes)
            self.declare(signature)
            self._views()
            if self.panels_first:
                with self.registers():
                    self._panels(0)
            else:
                with T.parallel(0, window.batch * tiles.row_blocks * tiles.column_blocks) as tile, self.registers():
                    self._tile(tile)
        return signature.built()

    def _declare_input(self, signature: Signature) -> None:
        """Declare the activations, or the float32 values to binarize and the output for their bits."""
        self.input_bytes = nbytes = self.window.batch * self.window.height * self.input.source.row
        self.binarized: BinarizeBuffers | None = None
        if self.quantizer is None:
            words = isinstance(self.op.left, Bits)
            shape, dtype = ((nbytes // 4,), "uint32") if words else ((nbytes,), "uint8")
            self.source = signature.input(OWN_INPUTS[0], shape, dtype)
            return
        self.source = signature.input(OWN_INPUTS[0], (nbytes * BYTE_BITS,), "float32")
        threshold = signature.constant("threshold", np.asarray(self.quantizer.threshold, np.float32).reshape(-1))
        bits = signature.output(len(self.op.epilogue.stores), (nbytes // WORD_BYTES,), "uint32")
        self.binarized = BinarizeBuffers(self.source, threshold, bits)

    def _views(self) -> None:
        """Declare views: the source of the copy, and int8 views of what the inner loop reads."""
        in_place = (self.input_bytes,)
        self.copied: Any = self.binarized or T.decl_buffer(in_place, "uint8", data=self.source.data)
        self.scratch: Any = None
        if self.workspace is not None:
            self.scratch = T.decl_buffer((self.workspace.shape[0],), "int8", data=self.workspace.data)
        self.read = self.scratch if self.input.needed else T.decl_buffer(in_place, "int8", data=self.source.data)
        size = self.panels.data.size
        self.operand = self.scratch if self.decodes else T.decl_buffer((size,), "int8", data=self.weight.data)

    # ---- tiles ----

    def _tile(self, tile: Any) -> None:
        tiles, window = self.tiles, self.window
        columns = tiles.column_blocks
        column_block = T.bind(tile % columns) if columns > 1 else 0
        rest = tile // columns if columns > 1 else tile
        image = T.bind(rest // tiles.row_blocks) if window.batch > 1 else 0
        first_input = self._set_rows(image, T.bind(rest % tiles.row_blocks) if tiles.row_blocks > 1 else 0)
        if self.input.needed:
            rows = T.min(self.groups * self.positions.height, window.out_height - self.first_row)
            copied = (rows - 1) * window.stride[0] + (window.kernel[0] - 1) * window.dilation[0] + 1
            with T.attr(0, ONCE, column_block == 0) if columns > 1 else nullcontext():
                self.input.emit(self.copied, image, T.bind(first_input), T.bind(copied), self.scratch)
        self._panels(column_block)

    def _set_rows(self, image: Any, row_block: Any) -> Any:
        """Set the output rows of a tile; returns the first row of the input that it reads."""
        tiles, window = self.tiles, self.window
        first_group = T.bind(row_block * tiles.row_groups) if tiles.row_blocks > 1 else 0
        self.groups: Any = self.row_groups
        if tiles.row_blocks > 1:
            self.groups = T.bind(T.min(tiles.row_groups, self.row_groups - first_group))
        self.image, self.first_group, self.first_row = image, first_group, first_group * self.positions.height
        first_input = self.first_row * window.stride[0] - window.padding[0]
        self.origin: Any = 0
        if not self.input.needed:
            self.origin = T.bind((image * window.height + first_input) * self.layout.row)
        return first_input

    def _panels(self, block: Any) -> None:
        """Whole panels of the block in a loop, then the narrower one where the block reaches it."""
        panels, tiles, groups = self.panels, self.tiles, self.window.groups
        if groups > 1:
            total = panels.per_group * groups
            first = block * tiles.panels
            with loop(T.min(tiles.panels, total - first) if tiles.column_blocks > 1 else total) as step:
                index = T.bind(first + step)
                group = T.bind(index // panels.per_group)
                self._either(group, T.bind(index % panels.per_group))
            return
        if tiles.column_blocks == 1:
            if panels.whole:
                with loop(panels.whole) as panel:
                    self._panel(0, panel, panels.vectors, panels.columns)
            if panels.tail_columns:
                self._panel(0, panels.whole, panels.tail_vectors, panels.tail_columns)
            return
        first = T.bind(block * tiles.panels)
        with loop(T.min(tiles.panels, panels.per_group - first)) as step:
            self._either(0, T.bind(first + step))

    def _either(self, group: Any, panel: Any) -> None:
        panels = self.panels
        if not panels.tail_columns:
            self._panel(group, panel, panels.vectors, panels.columns)
        elif not panels.whole:
            self._panel(group, panel, panels.tail_vectors, panels.tail_columns)
        else:
            with T.If(panel < panels.whole):
                with T.Then():
                    self._panel(group, panel, panels.vectors, panels.columns)
                with T.Else():
                    self._panel(group, panel, panels.tail_vectors, panels.tail_columns)

    def _panel(self, group: Any, panel: Any, vectors: int, columns: int) -> None:
        panels = self.panels
        packed = group * panels.group_bytes + panel * panels.panel_bytes
        packed = packed if isinstance(packed, int) else T.bind(packed)
        per_group = self.window.out_channels // self.window.groups
        column = group * per_group + panel * panels.columns
        column = column if isinstance(column, int) else T.bind(column)
        part_bytes = panels.chunks(vectors, self.parts) * self.instruction.vector_bytes
        with loop(self.parts) as part:
            self.part = part
            weights = packed + part * part_bytes
            if self.decodes:
                decode_panel(panels, self.weight, weights, vectors, self.scratch, self.copy_bytes, self.parts)
                weights = self.copy_bytes
            tile = PanelTile(group, weights, column, vectors, columns)
            if self.panels_first:
                with T.parallel(0, self.tiles.row_blocks) as row_block:
                    self._set_rows(0, row_block)
                    self.all_rows(tile)
            else:
                self.all_rows(tile)

    def all_rows(self, panel: PanelTile) -> None:
        """All output rows of the tile."""
        inner = self.register_tile(panel)
        height, window = self.positions.height, self.window
        rest = window.out_height % height
        if not rest:
            with loop(self.groups) as row_group:
                self._row(inner, row_group, height)
            return
        whole = window.out_height // height
        if isinstance(self.groups, int):
            if whole:
                with loop(whole) as row_group:
                    self._row(inner, row_group, height)
            self._row(inner, whole, rest)
            return
        first_group = self.first_row // height
        with loop(self.groups) as row_group, T.If(first_group + row_group < whole):
            with T.Then():
                self._row(inner, row_group, height)
            with T.Else():
                self._row(inner, row_group, rest)

    def _row(self, inner: EmitsTiles, row_group: Any, height: int) -> None:
        """Register tiles along one group of output rows."""
        width = self.positions.width
        whole, rest = divmod(self.window.out_width, width)
        row = row_group * self.positions.height
        with loop(whole) as index:
            inner.emit(row, index * width, height, width)
        if rest:
            inner.emit(row, whole * width, height, rest)
