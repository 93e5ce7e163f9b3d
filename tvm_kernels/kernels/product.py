"""The one builder behind every x86 product: codes or bits times packed weights, matrix product or convolution.

Loops, outermost first:

    parallel  tiles: image, block of output rows, block of panels
      copy the rows of the input that the tile looks at, if they cannot be read where they lie      (padded_input.py)
      panels of output channels
        decode the panel's weights into the workspace, if they are packed below 8 bits              (panels.py)
        register tiles: a few output positions x a few vectors of channels, int32 accumulators in registers
          window places and channels: one broadcast for each position, one instruction for each accumulator  (x86.py)
          epilogue                                                                                  (epilogue.py)

Zero points cost nothing at run time: accumulators start at -zero_point x (sum of the channel's weights), and padded
places hold the zero point. When a tile has one register tile only (a matrix-vector product), the inner loop decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Ramp

from subbyte.formats import PerGroup
from subbyte.tvm_kernels.kernels.code_generator import unfused
from subbyte.tvm_kernels.kernels.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.float_functions import splat
from subbyte.tvm_kernels.kernels.padded_input import Layout, PaddedInput
from subbyte.tvm_kernels.kernels.panels import Codes, decode_chunk, decode_panel, pack_panels
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.signature import Signature
from subbyte.tvm_kernels.kernels.tiling import Tiles, Window, positions_of, tiles_of
from subbyte.tvm_kernels.kernels.x86 import STEP_BYTES, Instruction
from subbyte.tvm_kernels.operators import Epilogue, QuantizedProduct, Scale, ToBits

WORD = 32
WIDEST_PANEL = 16  # vectors of channels
NEAR_BYTES = 40_000  # of weights that stay in a first-level cache of 48 KiB


@dataclass(frozen=True, eq=False)
class Operands:
    """What differs between codes and bits.

    window: in bytes of activations; codes: of the weights [channels, kernel_h, kernel_w, bytes]; fill: one padded
    place; start: int32 [quantization groups, channels], the first value of each sum; scale: float32 of the same shape,
    or None; group_elements: elements in a quantization group; finish: from the sum to the product.
    """

    window: Window
    codes: Codes
    fill: bytes
    start: npt.NDArray[np.int32]
    epilogue: Epilogue
    scale: npt.NDArray[np.float32] | None = None
    group_elements: int = 0
    finish: Callable[[Any], Any] | None = None


@contextmanager
def _loop(extent: Any, first: Any = 0) -> Iterator[Any]:
    """A serial loop, or none where it would run just once."""
    if isinstance(extent, int) and extent == 1:
        yield first
    else:
        with T.serial(0, extent) as index:
            yield first + index if not (isinstance(first, int) and first == 0) else index


def register_tile(instruction: Instruction, window: Window, depth_bytes: int) -> tuple[int, int]:
    """Most output positions, and vectors of channels, of a register tile; `depth_bytes`: weights of a channel."""
    channels = window.out_channels // window.groups
    available = -(-channels // instruction.lanes)
    positions, vectors = instruction.near_tile
    if window.rows <= 2:
        return window.rows, min(2 * vectors, available)
    if window.out_width > 1 or min(vectors, available) * instruction.lanes * depth_bytes > NEAR_BYTES:
        positions, vectors = instruction.far_tile
    if available >= vectors:
        return positions, vectors
    # Few channels: keep the number of accumulators by taking more positions.
    total = max(positions * vectors, instruction.far_tile[0] * instruction.far_tile[1])
    return min(total // available, instruction.far_tile[0]), available


class ProductBuilder:
    """Builds one product; see the head of this file."""

    def __init__(self, op: QuantizedProduct, instruction: Instruction, operands: Operands) -> None:
        self.op, self.instruction, self.operands = op, instruction, operands
        self.window = window = operands.window
        wide = instruction.widened
        stored = window.channels // window.groups
        rounded = -(-stored * wide // STEP_BYTES) * STEP_BYTES // wide
        depth_bytes = window.kernel[0] * window.kernel[1] * rounded * wide
        most, vectors = register_tile(instruction, window, depth_bytes)
        if operands.scale is not None:
            most = max(1, most // 2)
        self.positions = positions_of(window, most, vectors, instruction.operations)
        self.input = PaddedInput(window, stored, rounded, wide, operands.fill)
        single = window.out_height <= self.positions.height and window.out_width <= self.positions.width
        per = 8 // operands.codes.bits
        self.inline = single and wide == 1 and operands.codes.bits < 8
        if self.inline:
            vectors = -(-vectors // per) * per
        self.panels = pack_panels(operands.codes, window.groups, rounded, vectors, instruction, self.inline)
        self.row_groups = -(-window.out_height // self.positions.height)
        self.tiles = self._tiles()
        self.steps_place = rounded * wide // STEP_BYTES
        copied = self.input.copied_rows(self.tiles.row_groups * self.positions.height)
        self.layout: Layout = self.input.copy if self.input.needed else self.input.source
        self.copy_bytes = -(-copied * self.layout.row // 64) * 64 if self.input.needed else 0
        self.decodes = self.panels.decodes and not self.inline

    def _tiles(self) -> Tiles:
        """Where signs are stored, a word of 32 channels must stay inside one tile."""
        window, panels = self.window, self.panels
        decode = panels.data.size * panels.per_chunk if panels.decodes and not self.inline else 0
        copy = self.input.copy.row * (window.height + 2) if self.input.needed else 0
        total = panels.per_group * window.groups
        words = any(isinstance(form, ToBits) for form in self.op.epilogue.forms)
        splits = not words or (window.groups == 1 and panels.columns % WORD == 0)
        if not splits:
            tiles = tiles_of(window, self.row_groups, 1, copy, decode)
            return Tiles(tiles.row_blocks, tiles.row_groups, 1, total)
        return tiles_of(window, self.row_groups, total, copy, decode)

    def build(self) -> Built:
        window, tiles = self.window, self.tiles
        with IRBuilder() as builder, T.prim_func():
            T.func_name("kernel")
            T.func_attr({"tirx.noalias": True})
            signature = Signature()
            nbytes = window.batch * window.height * self.input.source.row
            words = self.op.activation.dtype == "uint32"
            self.source = signature.input(
                OWN_INPUTS[0], (nbytes // 4 if words else nbytes,), "uint32" if words else "uint8"
            )
            self.weight = signature.constant("weight", self.panels.data)
            self.start = signature.constant("start", self.operands.start)
            self.scale: Any = None
            if self.operands.scale is not None:
                self.scale = signature.constant("scale by group", self.operands.scale)
            self.epilogue = EpilogueEmitter(
                self.operands.epilogue, window.rows, window.out_channels, signature, x86=True
            )
            self.workspace: Any = None
            decoded = self.panels.workspace_bytes if self.decodes else 0
            if self.copy_bytes + decoded:
                self.workspace = signature.workspace(self.copy_bytes + decoded)
            self._views(nbytes)
            with T.parallel(0, window.batch * tiles.row_blocks * tiles.column_blocks) as tile:
                self._tile(tile)
        return Built(builder.get(), signature.parameters)

    def _views(self, nbytes: int) -> None:
        """Byte views: the input as uint8 for copying, whatever the inner loop reads as int8."""
        self.input_bytes = T.decl_buffer((nbytes,), "uint8", data=self.source.data)
        self.scratch: Any = None
        if self.workspace is not None:
            self.scratch = T.decl_buffer((self.workspace.shape[0],), "int8", data=self.workspace.data)
        self.read = self.scratch if self.input.needed else T.decl_buffer((nbytes,), "int8", data=self.source.data)
        size = self.panels.data.size
        self.operand = self.scratch if self.decodes else T.decl_buffer((size,), "int8", data=self.weight.data)

    # ---- tiles ----

    def _tile(self, tile: Any) -> None:
        tiles, window = self.tiles, self.window
        columns = tiles.column_blocks
        column_block = T.bind(tile % columns) if columns > 1 else 0
        rest = tile // columns if columns > 1 else tile
        image = T.bind(rest // tiles.row_blocks) if window.batch > 1 else 0
        row_block = T.bind(rest % tiles.row_blocks) if tiles.row_blocks > 1 else 0
        first_group = T.bind(row_block * tiles.row_groups) if tiles.row_blocks > 1 else 0
        height = self.positions.height
        groups: Any = self.row_groups
        if tiles.row_blocks > 1:
            groups = T.bind(T.min(tiles.row_groups, self.row_groups - first_group))
        first_row = first_group * height
        first_input = first_row * window.stride[0] - window.padding[0]
        if self.input.needed:
            rows = T.min(groups * height, window.out_height - first_row)
            copied = (rows - 1) * window.stride[0] + (window.kernel[0] - 1) * window.dilation[0] + 1
            self.input.emit(self.input_bytes, image, T.bind(first_input), T.bind(copied), self.scratch)
            self.origin: Any = 0
        else:
            self.origin = T.bind((image * window.height + first_input) * self.layout.row)
        self.image, self.first_row, self.groups = image, first_row, groups
        self._panels(column_block)

    def _panels(self, block: Any) -> None:
        """Whole panels of the block in a loop, then the narrower one where the block reaches it."""
        panels, tiles, groups = self.panels, self.tiles, self.window.groups
        if groups > 1:
            total = panels.per_group * groups
            first = block * tiles.panels
            with _loop(T.min(tiles.panels, total - first) if tiles.column_blocks > 1 else total) as step:
                index = T.bind(first + step)
                group = T.bind(index // panels.per_group)
                self._either(group, T.bind(index % panels.per_group))
            return
        if tiles.column_blocks == 1:
            if panels.whole:
                with _loop(panels.whole) as panel:
                    self._panel(0, panel, panels.vectors, panels.columns)
            if panels.tail_columns:
                self._panel(0, panels.whole, panels.tail_vectors, panels.tail_columns)
            return
        first = T.bind(block * tiles.panels)
        with _loop(T.min(tiles.panels, panels.per_group - first)) as step:
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
        if self.decodes:
            decode_panel(panels, self.weight, packed, vectors, self.scratch, self.copy_bytes)
            weights: Any = self.copy_bytes
        else:
            weights = packed
        per_group = self.window.out_channels // self.window.groups
        column = group * per_group + panel * panels.columns
        column = column if isinstance(column, int) else T.bind(column)
        inner = _RegisterTile(self, group, weights, column, vectors, columns)
        self._row_groups(inner)

    def _row_groups(self, inner: _RegisterTile) -> None:
        height, window = self.positions.height, self.window
        rest = window.out_height % height
        if not rest:
            with _loop(self.groups) as row_group:
                self._row(inner, row_group, height)
            return
        whole = window.out_height // height
        if isinstance(self.groups, int):
            if whole:
                with _loop(whole) as row_group:
                    self._row(inner, row_group, height)
            self._row(inner, whole, rest)
            return
        first_group = self.first_row // height
        with _loop(self.groups) as row_group, T.If(first_group + row_group < whole):
            with T.Then():
                self._row(inner, row_group, height)
            with T.Else():
                self._row(inner, row_group, rest)

    def _row(self, inner: _RegisterTile, row_group: Any, height: int) -> None:
        """Register tiles along one group of output rows."""
        width = self.positions.width
        whole, rest = divmod(self.window.out_width, width)
        row = row_group * self.positions.height
        with _loop(whole) as place:
            inner.emit(row, place * width, height, width)
        if rest:
            inner.emit(row, whole * width, height, rest)


class _RegisterTile:
    """Emits the inner loops and the epilogue of one register tile of a panel."""

    def __init__(
        self, product: ProductBuilder, group: Any, weights: Any, column: Any, vectors: int, columns: int
    ) -> None:
        self.product, self.group, self.weights = product, group, weights
        self.column, self.vectors, self.columns = column, vectors, columns
        self.instruction = product.instruction
        self.lanes = product.instruction.lanes

    def emit(self, row: Any, place: Any, height: int, width: int) -> None:
        """Compute `height` x `width` positions from output row `row` of the tile and place `place` of the row."""
        product, window, layout = self.product, self.product.window, self.product.layout
        base = product.origin + row * (window.stride[0] * layout.row)
        base = base + place * (window.stride[1] * layout.place) + self.group * layout.group
        self.base = base if isinstance(base, int) else T.bind(base)
        self.offsets = [
            y * window.stride[0] * layout.row + x * window.stride[1] * layout.place
            for y in range(height)
            for x in range(width)
        ]
        if product.operands.scale is None:
            sums = self._sums(lambda vector: self._constant(product.start, 0, vector))
            self._window(sums)
        else:
            sums = self._by_quantization_group()
        output = (product.image * window.out_height + product.first_row + row) * window.out_width + place
        output = output if isinstance(output, int) else T.bind(output)
        for index, (y, x) in enumerate((y, x) for y in range(height) for x in range(width)):
            self._store(sums[index], output + (y * window.out_width + x))

    def _sums(self, first: Callable[[int], Any], dtype: str = "int32") -> list[list[Any]]:
        """One register for each position and vector, set to `first(vector)`."""
        starts = [T.bind(first(vector)) for vector in range(self.vectors)]
        registers = []
        for _ in self.offsets:
            registers.append([T.alloc_buffer((self.lanes,), dtype) for _ in starts])
            for register, start in zip(registers[-1], starts, strict=True):
                T.buffer_store(register, start, [Ramp(0, 1, self.lanes)])
        return registers

    def _constant(self, buffer: Any, quantization_group: Any, vector: int) -> Any:
        """A vector of a [groups, channels] constant, padded to whole panels by `padded_channels`."""
        return buffer[quantization_group, Ramp(self.column + vector * self.lanes, 1, self.lanes)]

    def _load(self, register: Any) -> Any:
        return register[Ramp(0, 1, self.lanes)]

    # ---- the reduction ----

    def _window(self, sums: list[list[Any]]) -> None:
        """All window places and channels; neighbouring places of a row are one run where nothing lies between them."""
        product, window, layout = self.product, self.product.window, self.product.layout
        kernel_h, kernel_w = window.kernel
        steps = product.steps_place
        merged = window.groups == 1 and (window.dilation[1] == 1 or kernel_w == 1)
        with _loop(kernel_h) as y:
            row = y * (window.dilation[0] * layout.row)
            if merged:
                self._run(sums, row, y * (kernel_w * steps), kernel_w * steps)
                return
            with _loop(kernel_w) as x:
                at = row + x * (window.dilation[1] * layout.place)
                self._run(sums, at, (y * kernel_w + x) * steps, steps)

    def _run(self, sums: list[list[Any]], offset: Any, first_step: Any, steps: int) -> None:
        """`steps` consecutive steps: of activations from byte `offset` of the window, of weights from `first_step`."""
        start = self.base + offset
        start = start if isinstance(start, int) else T.bind(start)
        width = self.instruction.vector_bytes
        size = self.vectors * width
        if self.product.inline:
            size //= self.product.panels.per_chunk
        weights = self.weights + first_step * size
        weights = weights if isinstance(weights, int) else T.bind(weights)
        with _loop(steps) as step:
            self._step(sums, start, weights, step, size)

    def _step(self, sums: list[list[Any]], start: Any, weights: Any, step: Any, size: int) -> None:
        """One step: every position's four bytes times the weights of every vector."""
        width = self.instruction.vector_bytes
        operands = self._operands(weights + step * size)
        for index, position in enumerate(self.offsets):
            at = start + step * STEP_BYTES + position
            word = T.reinterpret("int32", self.product.read[Ramp(at, 1, STEP_BYTES)])
            broadcast = T.bind(T.reinterpret(f"int8x{width}", splat(word, self.lanes)))
            for vector, operand in enumerate(operands):
                register = sums[index][vector]
                total = self.instruction.accumulate(self._load(register), broadcast, operand)
                T.buffer_store(register, total, [Ramp(0, 1, self.lanes)])

    def _operands(self, at: Any) -> list[Any]:
        """The weight vectors of one step, whose bytes start at `at`."""
        width = self.instruction.vector_bytes
        product = self.product
        if not product.inline:
            return [T.bind(product.operand[Ramp(at + v * width, 1, width)]) for v in range(self.vectors)]
        chunks = self.vectors // product.panels.per_chunk
        decoded = [decode_chunk(product.panels, product.weight, at + chunk * width) for chunk in range(chunks)]
        return [T.bind(vector) for vectors in decoded for vector in vectors]

    def _by_quantization_group(self) -> list[list[Any]]:
        """The sum of each group of weights times its scale, added up in float32 in the order of the groups."""
        product, window, layout = self.product, self.product.window, self.product.layout
        totals = self._sums(lambda vector: splat(T.float32(0), self.lanes), "float32")
        elements = STEP_BYTES // self.instruction.widened
        group_steps = product.operands.group_elements // elements
        in_place, rest = divmod(product.steps_place, group_steps)
        per_place = in_place + (rest > 0)
        with _loop(window.kernel[0]) as y, _loop(window.kernel[1]) as x:
            at = y * (window.dilation[0] * layout.row) + x * (window.dilation[1] * layout.place)
            place = y * window.kernel[1] + x
            if in_place:
                with _loop(in_place) as index:
                    step = place * product.steps_place + index * group_steps
                    offset = at + index * (group_steps * STEP_BYTES)
                    self._add_group(totals, place * per_place + index, offset, step, group_steps)
            if rest:
                step = place * product.steps_place + in_place * group_steps
                offset = at + in_place * group_steps * STEP_BYTES
                self._add_group(totals, place * per_place + in_place, offset, step, rest)
        return totals

    def _add_group(self, totals: list[list[Any]], group: Any, offset: Any, step: Any, steps: int) -> None:
        product = self.product
        group = group if isinstance(group, int) else T.bind(group)
        sums = self._sums(lambda vector: self._constant(product.start, group, vector))
        self._run(sums, offset, step, steps)
        for vector in range(self.vectors):
            scale = T.bind(self._constant(product.scale, group, vector))
            for index in range(len(self.offsets)):
                real = T.Cast(f"float32x{self.lanes}", self._load(sums[index][vector]))
                total = self._load(totals[index][vector]) + unfused(real * scale)
                T.buffer_store(totals[index][vector], total, [Ramp(0, 1, self.lanes)])

    # ---- the epilogue ----

    def _store(self, registers: list[Any], row: Any) -> None:
        finish = self.product.operands.finish or (lambda total: total)
        for vector, register in enumerate(registers):
            count = min(self.lanes, self.columns - vector * self.lanes)
            if count <= 0:
                break

            def load(offset: int, lanes: int, register: Any = register) -> Any:
                return finish(register[offset] if lanes == 1 else register[Ramp(offset, 1, lanes)])

            self.product.epilogue.emit_channels(load, row, self.column + vector * self.lanes, count, self.lanes)


def padded_channels(values: npt.NDArray[Any], instruction: Instruction) -> npt.NDArray[Any]:
    """[groups, channels] with zeros for a whole panel after the last channel: the last panel loads whole vectors."""
    return np.pad(values, [(0, 0), (0, WIDEST_PANEL * instruction.lanes)])


def depth_groups(op: QuantizedProduct) -> int:
    """Elements of the reduction that share a scale inside the sum, or 0 where none do."""
    granularity = op.weight.granularity
    inside = isinstance(granularity, PerGroup) and granularity.size < op.weight.depth
    return granularity.size if isinstance(granularity, PerGroup) and inside else 0


def whole_epilogue(op: QuantizedProduct) -> Epilogue:
    """The operator's epilogue; a single group over the whole depth is a scale before it."""
    if not isinstance(op.weight.granularity, PerGroup) or depth_groups(op):
        return op.epilogue
    return replace(op.epilogue, steps=(Scale(op.weight.scale.reshape(-1)), *op.epilogue.steps))
