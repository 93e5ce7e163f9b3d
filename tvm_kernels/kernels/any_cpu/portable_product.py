"""The common loops of integer products for any CPU: gather, prepare a panel, register tiles, epilogue.

A thread takes a block of rows (of a convolution: gathers their patches once) and loops over the columns by 32: each
panel of 8 is prepared in workspace (for instance decoded) and multiplied with all rows of the block; then the epilogue
runs over the block's 32 columns. `Arithmetic` is what differs between number formats.

LLVM gets vectors of 8 columns and tiles of 6 rows (12 of NEON's 32 registers for sums), C sources get scalars and tiles
of 2 rows x 4 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Shuffle

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.im2col import Matrices, gather
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import at
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import PANEL, WeightPanels, nbytes
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator, unfused
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import Signature, prim_func, view
from subbyte.tvm_kernels.kernels.tir.vectors import splat, vector_type
from subbyte.tvm_kernels.operators import WORD, Conv2d, Product

WORKSPACE = {"llvm": 1 << 17, "c": 1 << 13}  # bytes of patches and sums that one block may take
MOST_ROWS = {"llvm": 96, "c": 32}
FEWEST_TILES = 8
WIDE = WORD  # columns between two epilogues: whole words of bits


@dataclass(frozen=True)
class PanelSource:
    """The source of a panel's elements: a constant in panel order, or workspace filled by prepare(group, panel, it)."""

    dtype: str
    constant: Any = None
    prepare: Callable[[Any, Any, Any], None] | None = None


@dataclass(frozen=True)
class Arithmetic:
    """The multiply-add of elements of the left operand and of a panel.

    load(input, pixel, element) is an element of the left operand (`linear`: the one at pixel * elements + element) and
    pad(element) a padded one. step(sum, left, right, lanes) is the new int32 sum; finish(sum, lanes) the result. Sums
    start at -zero_point x the weights' sum.
    """

    geometry: Conv2d
    matrices: Matrices
    elements: int  # of a pixel, in all groups
    left_dtype: str
    load: Callable[[Any, Any, Any], Any]
    linear: bool
    pad: Callable[[Any], Any]
    zero_point: int
    panels: Callable[[Signature], PanelSource]
    step: Callable[[Any, Any, Any, int], Any]
    lefts: int = 1  # elements of a row that are loaded together; more than one are widened to int16
    finish: Callable[[Any, int], Any] = lambda total, lanes: total


@dataclass(frozen=True)
class Tile:
    """The sums kept in registers: rows x vectors of lanes."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def sums(self) -> list[tuple[int, int]]:
        """(row, vector) of each sum."""
        return [(r, v) for r in range(self.rows) for v in range(self.vectors)]


def build(op: Product[Any, LowBitTensor], weight: WeightPanels, how: Arithmetic, stored: tuple[int, str]) -> Built:
    """The product of `op`; `stored` is (elements, dtype) of the input."""
    shape = how.matrices
    with prim_func("product") as signature:
        product = _Product(op, weight, how, stored, signature)
        wides = -(-shape.columns // WIDE)
        # One block of rows is distributed over threads by columns; C sources have no threads, and gather only once.
        if product.blocks == 1 and shape.groups == 1 and current_code_generator() == "llvm":
            with T.parallel(0, wides) as t:
                product.wide(0, shape.rows, product.gather(0, shape.rows, 0), 0, t)
        else:
            with T.parallel(0, product.blocks) as t:
                first = T.bind(t * product.block)
                count = T.bind(T.min(product.block, shape.rows - first))
                with T.serial(0, shape.groups) as group:
                    left_row = product.gather(first, count, group)
                    with T.serial(0, wides) as number:
                        product.wide(first, count, left_row, group, number)
    return signature.built()


class _Product:
    """The parameters and loops of one kernel while its TIR is being built."""

    def __init__(
        self,
        op: Product[Any, LowBitTensor],
        weight: WeightPanels,
        how: Arithmetic,
        stored: tuple[int, str],
        signature: Signature,
    ) -> None:
        generator = current_code_generator()
        shape = how.matrices
        self.how, self.shape, self.weight = how, shape, weight
        self.tile = Tile(min(2, shape.rows), 4, 1) if generator == "c" else Tile(min(6, shape.rows), 1, PANEL)
        self.lefts = how.lefts if generator == "llvm" else 1
        self.block = _block(shape, self.tile.rows, generator, nbytes(how.left_dtype))
        self.blocks = -(-shape.rows // self.block)
        self.group_size = op.group_size
        self.store_lanes = _store_lanes(op, shape, self.tile.lanes)

        self.source = signature.input(OWN_INPUTS[0], (stored[0],), stored[1])
        self.panels = how.panels(signature)
        self.starts = signature.constant("start", weight.starts(how.zero_point)) if how.zero_point else None
        self.scales = signature.constant("group scale", weight.scales()) if self.group_size else None
        sum_rows = self.block + self.tile.rows
        places = _places(
            {
                "panel": shape.depth * PANEL * nbytes(self.panels.dtype) if self.panels.prepare else 0,
                "sums": sum_rows * WIDE * 4,
                "patches": self.block * shape.depth * nbytes(how.left_dtype) if shape.gathered else 0,
            }
        )
        scratch = signature.workspace(places["end"])
        self.epilogue = EpilogueEmitter(op.epilogue, shape.rows, shape.columns * shape.groups, signature)
        self.right = self.panels.constant
        if self.panels.prepare:
            self.right = view(scratch, (shape.depth * PANEL,), self.panels.dtype, places["panel"])
        self.sums = view(scratch, (sum_rows * WIDE,), "float32" if self.group_size else "int32", places["sums"])
        self.left = self.source
        if shape.gathered:
            self.left = view(scratch, (self.block * shape.depth,), how.left_dtype, places["patches"])

    def gather(self, first: Any, count: Any, group: Any) -> Any:
        """Gathers a block's patches; returns the row of the left operand where the block begins."""
        how = self.how
        if not self.shape.gathered:
            return first

        def load(pixel: Any, element: Any) -> Any:
            return how.load(self.source, pixel, element)

        gather(how.geometry, how.elements, load, self.left, first, count, group, how.pad, how.linear)
        return 0

    def wide(self, first: Any, count: Any, left_row: Any, group: Any, number: Any) -> None:
        """All rows of a block x 32 columns, and their epilogue."""
        tile, weight = self.tile, self.weight
        first_panel = T.bind(number * (WIDE // PANEL))
        with T.serial(0, T.min(WIDE // PANEL, weight.panels - first_panel)) as p:
            index = T.bind(group * weight.panels + first_panel + p)
            if self.panels.prepare:
                self.panels.prepare(group, first_panel + p, self.right)
            with T.serial(0, (count + tile.rows - 1) // tile.rows) as m:
                # The last tile of a matrix overlaps the one before, and may begin up to a tile before the block: `sums`
                # begins with room for such rows. The buffer of patches is large enough for whole tiles.
                begin = T.bind(m * tile.rows if self.shape.gathered else T.min(m * tile.rows, count - tile.rows))
                base = T.bind((left_row + begin) * self.shape.depth)
                out = T.bind((begin + tile.rows) * WIDE + p * PANEL)
                if tile.columns == PANEL:
                    self.one_tile(base, out, index, 0)
                else:
                    with T.serial(0, PANEL // tile.columns) as part:
                        self.one_tile(base, out + part * tile.columns, index, part * tile.columns)
        self.store(first, count, group, number)

    def one_tile(self, base: Any, out: Any, index: Any, column: Any) -> None:
        """sums[out ...] of a tile: left rows from `base`, columns of panel `index` from `column`."""
        lanes, place = self.tile.lanes, at(0, self.tile.lanes)
        totals = {key: T.alloc_buffer((lanes,), "int32") for key in self.tile.sums}
        depth, size = self.shape.depth, self.group_size
        if not size:
            self.multiply(0, depth, base, index, column, totals, T.bind(index * PANEL + column))
            for (r, v), total in totals.items():
                T.buffer_store(self.sums, self.how.finish(total[place], lanes), [at(out + r * WIDE + v, lanes)])
            return
        reals = {key: T.alloc_buffer((lanes,), "float32") for key in self.tile.sums}
        for real in reals.values():
            T.buffer_store(real, splat(T.float32(0), lanes), [place])

        def group_of(number: Any, length: int) -> None:
            constants = T.bind((index * -(-depth // size) + number) * PANEL + column)
            self.multiply(number * size, length, base, index, column, totals, constants)
            for (r, v), real in reals.items():
                part = T.Cast(vector_type("float32", lanes), totals[r, v][place])
                assert self.scales is not None
                scaled = unfused(part * self.scales[at(constants + v, lanes)])
                T.buffer_store(real, real[place] + scaled, [place])

        with T.serial(0, depth // size) as number:
            group_of(number, size)
        if depth % size:
            group_of(depth // size, depth % size)
        for (r, v), real in reals.items():
            T.buffer_store(self.sums, real[place], [at(out + r * WIDE + v, lanes)])

    def multiply(
        self,
        first: Any,
        length: int,
        base: Any,
        index: Any,
        column: Any,
        totals: dict[tuple[int, int], Any],
        constants: Any,
    ) -> None:
        """A tile's totals over first .. first + length - 1 of the depth; `constants`: index of their initial values."""
        tile, depth, lefts = self.tile, self.shape.depth, self.lefts
        lanes, place = tile.lanes, at(0, tile.lanes)
        for (_, v), total in totals.items():
            start = splat(IntImm("int32", 0), lanes)
            if self.starts is not None:
                start = self.starts[at(constants + v, lanes)]
            T.buffer_store(total, start, [place])
        offset = 0 if self.panels.prepare else index * (depth * PANEL)

        def step(k: Any, left: Callable[[int], Any]) -> None:
            begin = T.bind(offset + k * PANEL + column)
            right = [T.bind(self.right[at(begin + v, lanes)]) for v in range(tile.vectors)]
            for r in range(tile.rows):
                element = T.bind(left(r))
                for v in range(tile.vectors):
                    total = totals[r, v]
                    T.buffer_store(total, self.how.step(total[place], element, right[v], lanes), [place])

        whole = length // lefts if lefts > 1 else 0
        if whole:
            # Several elements of each row are loaded at once, then used lane by lane: NEON multiplies by a lane.
            with T.serial(0, whole) as chunk:
                k = T.bind(first + chunk * lefts)
                several = f"int16x{lefts}"
                loaded = [T.bind(T.Cast(several, self.left[at(base + r * depth + k, lefts)])) for r in range(tile.rows)]
                for lane in range(lefts):
                    step(k + lane, lambda r, lane=lane: Shuffle([loaded[r]], [lane] * lanes))  # type: ignore[misc]
        if whole * lefts < length:
            with T.serial(whole * lefts, length) as rest:
                k = T.bind(first + rest)
                step(k, lambda r: splat(self.left[base + r * depth + k], lanes))

    def store(self, first: Any, count: Any, group: Any, number: Any) -> None:
        """The epilogue of a block's 32 columns."""
        columns = self.shape.columns
        column = T.bind(number * WIDE)
        with T.serial(0, count) as r:

            def load(offset: Any, n: int) -> Any:
                return self.sums[at((r + self.tile.rows) * WIDE + offset, n)]

            def channels(number_of: Any) -> None:
                start = group * columns + column
                if self.store_lanes > 1:
                    self.epilogue.emit_channels(load, first + r, start, number_of, self.store_lanes)
                    return
                with T.serial(0, number_of) as c:
                    self.epilogue.emit(load(c, 1), first + r, start + c)

            if columns % WIDE == 0:
                channels(WIDE)
            elif self.store_lanes == 1:
                channels(T.min(WIDE, columns - column))
            else:
                with T.If(column + WIDE <= columns):
                    with T.Then():
                        channels(WIDE)
                    with T.Else():
                        channels(columns % WIDE)


def _store_lanes(op: Product[Any, LowBitTensor], shape: Matrices, lanes: int) -> int:
    """Lanes of the epilogue: a vector must not cross a boundary between words of bits."""
    if shape.groups > 1 and shape.columns % WORD and op.epilogue.stores_bits:
        return 1
    return lanes


def _block(shape: Matrices, per_tile: int, generator: str, element: int) -> int:
    """Rows of a block: whole tiles, within the limit of workspace, with enough blocks for the threads."""
    tiles = -(-shape.rows // per_tile)
    row_bytes = WIDE * 4 + (element * shape.depth if shape.gathered else 0)
    most = max(1, min(MOST_ROWS[generator], WORKSPACE[generator] // row_bytes) // per_tile)
    if generator == "llvm" and tiles >= FEWEST_TILES:
        most = min(most, -(-tiles // FEWEST_TILES))
    blocks = -(-tiles // most)
    return -(-tiles // blocks) * per_tile


def _places(sizes: dict[str, int]) -> dict[str, int]:
    """Byte offsets of the parts of a workspace, each aligned to 64 bytes, and its `end`."""
    places = {}
    offset = 0
    for name, size in sizes.items():
        places[name] = offset
        offset += -(-size // 64) * 64
    return {**places, "end": offset}
