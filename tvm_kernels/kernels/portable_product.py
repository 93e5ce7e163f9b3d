"""The skeleton of integer products for any CPU: gather, prepare a panel, register tiles, epilogue.

A thread takes a block of rows (of a convolution: gathers their patches once) and goes through the columns by 32: each
panel of 8 is prepared in workspace (decoded, say), multiplied with all rows of the block, and then the epilogue runs over
the block's 32 columns. What differs between number formats is an `Arithmetic`.

LLVM gets vectors of 8 columns and tiles of 6 rows (16 of NEON's 32 registers); C sources get scalars, 2 rows x 4 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm, Shuffle

from subbyte.formats import PerGroup
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator, unfused
from subbyte.tvm_kernels.kernels.epilogue import WORD, EpilogueEmitter
from subbyte.tvm_kernels.kernels.float_functions import splat, vector_type
from subbyte.tvm_kernels.kernels.packed_weight import PANEL, Weight, nbytes
from subbyte.tvm_kernels.kernels.patches import Layout, gather
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.rowwise import at
from subbyte.tvm_kernels.kernels.signature import Signature, view
from subbyte.tvm_kernels.operators import Conv2d, QuantizedProduct, ToBits

WORKSPACE = {"llvm": 1 << 17, "c": 1 << 14}  # bytes of patches and sums that one block may take
MOST_ROWS = {"llvm": 96, "c": 32}
FEWEST_TILES = 8
WIDE = WORD  # columns between two epilogues: whole words of bits


@dataclass(frozen=True)
class Panels:
    """Where the elements of a panel come from: a constant in panel order, or workspace after prepare(group, panel, it)."""

    dtype: str
    constant: Any = None
    prepare: Callable[[Any, Any, Any], None] | None = None


@dataclass(frozen=True)
class Arithmetic:
    """How elements of the left operand meet those of a panel.

    load(input, pixel, element) is an element of the left operand (`linear`: it lies at pixel * elements + element) and
    pad(element) a padded one. step(sum, left, right, lanes) is the new int32 sum; finish(sum, lanes) the result. Sums
    start at -zero_point x the weights' sum.
    """

    geometry: Conv2d
    layout: Layout
    elements: int  # of a pixel, in all groups
    left_dtype: str
    load: Callable[[Any, Any, Any], Any]
    linear: bool
    pad: Callable[[Any], Any]
    zero_point: int
    panels: Callable[[Signature], Panels]
    step: Callable[[Any, Any, Any, int], Any]
    lefts: int = 1  # elements of a row that are loaded together; more than one are widened to int16
    finish: Callable[[Any, int], Any] = lambda total, lanes: total


def build(op: QuantizedProduct, weight: Weight, how: Arithmetic, stored: tuple[int, str]) -> Built:
    """The product of `op`; `stored` is (elements, dtype) of the input."""
    generator = current_code_generator()
    lanes, vectors, most = (1, 4, 2) if generator == "c" else (PANEL, 1, 6)
    shape = how.layout
    depth = shape.depth
    per_tile = min(most, shape.rows)
    block = _block(shape, per_tile, generator)
    blocks = -(-shape.rows // block)
    columns = shape.columns
    wides = -(-columns // WIDE)
    by_group = isinstance(op.weight.granularity, PerGroup)
    spans = weight.scale_groups if by_group else [(0, depth)]
    sum_dtype = "float32" if by_group else "int32"
    shared_columns = blocks == 1 and shape.groups == 1
    store_lanes = lanes
    while shape.groups > 1 and columns % store_lanes:
        store_lanes //= 2
    if shape.groups > 1 and columns % WORD and any(isinstance(form, ToBits) for form in op.epilogue.forms):
        store_lanes = 1

    with IRBuilder() as builder, T.prim_func():
        T.func_name("product")
        T.func_attr({"tirx.noalias": True})
        signature = Signature()
        source = signature.input(OWN_INPUTS[0], (stored[0],), stored[1])
        right_operand = how.panels(signature)
        starts = signature.constant("start", weight.starts(how.zero_point)) if how.zero_point else None
        scales = signature.constant("group scale", weight.scales()) if by_group else None
        places = _places(
            {
                "panel": depth * PANEL * nbytes(right_operand.dtype) if right_operand.prepare else 0,
                "sums": (block + per_tile) * WIDE * 4,
                "patches": block * depth * nbytes(how.left_dtype) if shape.gathered else 0,
            }
        )
        scratch = signature.workspace(places["end"])
        epilogue = EpilogueEmitter(op.epilogue, shape.rows, columns * shape.groups, signature)
        decoded = right_operand.constant
        if right_operand.prepare:
            decoded = view(scratch, (depth * PANEL,), right_operand.dtype, places["panel"])
        sums = view(scratch, ((block + per_tile) * WIDE,), sum_dtype, places["sums"])
        patches = source
        if shape.gathered:
            patches = view(scratch, (block * depth,), how.left_dtype, places["patches"])

        def multiply(first: int, end: int, base: Any, index: Any, half: Any, total: dict[tuple[int, int], Any]) -> None:
            """Add the products of first .. end - 1 along the depth to a tile's sums."""
            place = at(0, lanes)
            offset = 0 if right_operand.prepare else index * (depth * PANEL)

            def column(k: Any, lefts: Callable[[int], Any]) -> None:
                begin = T.bind(offset + k * PANEL + half)
                right = [T.bind(decoded[at(begin + v, lanes)]) for v in range(vectors)]
                for r in range(per_tile):
                    left = T.bind(lefts(r))
                    for v in range(vectors):
                        T.buffer_store(total[r, v], how.step(total[r, v][place], left, right[v], lanes), [place])

            whole = 0
            if how.lefts > 1 and generator == "llvm":
                # Several elements of each row at once, then one lane after the other: NEON multiplies by a lane.
                whole = (end - first) // how.lefts
                with T.serial(0, whole) as chunk:
                    k = T.bind(first + chunk * how.lefts)
                    loaded = [
                        T.bind(T.Cast(f"int16x{how.lefts}", patches[at(base + r * depth + k, how.lefts)]))
                        for r in range(per_tile)
                    ]
                    for j in range(how.lefts):
                        column(k + j, lambda r, j=j: Shuffle([loaded[r]], [j] * lanes))
            if whole * how.lefts < end - first:
                with T.serial(first + whole * how.lefts, end) as k:
                    column(k, lambda r: splat(patches[base + r * depth + k], lanes))

        def tile(base: Any, out: Any, index: Any, half: Any) -> None:
            """sums[out ...] of per_tile rows x (vectors * lanes) columns of the panel."""
            place = at(0, lanes)
            grid = [(r, v) for r in range(per_tile) for v in range(vectors)]
            total = {key: T.alloc_buffer((lanes,), "int32") for key in grid}
            real = {key: T.alloc_buffer((lanes,), "float32") for key in grid} if by_group else {}
            for key in real:
                T.buffer_store(real[key], splat(T.float32(0), lanes), [place])
            for number, (first, end) in enumerate(spans):
                constants = T.bind((index * len(spans) + number) * PANEL + half)
                for r, v in grid:
                    start = splat(IntImm("int32", 0), lanes)
                    if starts is not None:
                        start = starts[at(constants + v, lanes)]
                    T.buffer_store(total[r, v], start, [place])
                multiply(first, end, base, index, half, total)
                for key in real:
                    assert scales is not None
                    part = T.Cast(vector_type("float32", lanes), total[key][place])
                    scaled = unfused(part * scales[at(constants + key[1], lanes)])
                    T.buffer_store(real[key], real[key][place] + scaled, [place])
            for r, v in grid:
                value = real[r, v][place] if by_group else how.finish(total[r, v][place], lanes)
                T.buffer_store(sums, value, [at(out + r * WIDE + v, lanes)])

        def wide(first: Any, count: Any, left_row: Any, group: Any, number: Any) -> None:
            """All rows of the block x 32 columns."""
            first_panel = T.bind(number * (WIDE // PANEL))
            with T.serial(0, T.min(WIDE // PANEL, weight.panels - first_panel)) as p:
                index = T.bind(group * weight.panels + first_panel + p)
                if right_operand.prepare:
                    right_operand.prepare(group, first_panel + p, decoded)
                with T.serial(0, (count + per_tile - 1) // per_tile) as m:
                    # The last tile of a matrix reaches back over rows already done, up to per_tile before the block.
                    begin = T.bind(m * per_tile if shape.gathered else T.min(m * per_tile, count - per_tile))
                    base = T.bind((left_row + begin) * depth)
                    out = T.bind((begin + per_tile) * WIDE + p * PANEL)
                    if vectors * lanes == PANEL:
                        tile(base, out, index, 0)
                    else:
                        with T.serial(0, PANEL // (vectors * lanes)) as half:
                            tile(base, out + half * (vectors * lanes), index, half * (vectors * lanes))
            column = T.bind(number * WIDE)
            with T.serial(0, count) as r:

                def load(offset: Any, n: int) -> Any:
                    return sums[at((r + per_tile) * WIDE + offset, n)]

                def store(channels: Any) -> None:
                    if store_lanes > 1:
                        epilogue.emit_channels(load, first + r, group * columns + column, channels, store_lanes)
                        return
                    with T.serial(0, channels) as c:
                        epilogue.emit(load(c, 1), first + r, group * columns + column + c)

                if columns % WIDE == 0 or store_lanes == 1:
                    store(WIDE if columns % WIDE == 0 else T.min(WIDE, columns - column))
                else:
                    with T.If(column + WIDE <= columns):
                        with T.Then():
                            store(WIDE)
                        with T.Else():
                            store(columns % WIDE)

        def rows(first: Any, count: Any, group: Any) -> Any:
            """Gathers a block; the row of `patches` where it begins."""
            if not shape.gathered:
                return first
            gather(
                how.geometry,
                how.elements,
                lambda pixel, element: how.load(source, pixel, element),
                patches,
                first,
                count,
                group,
                how.pad,
                how.linear,
            )
            return 0

        if shared_columns:
            with T.parallel(0, wides) as t:
                wide(0, shape.rows, rows(0, shape.rows, 0), 0, t)
        else:
            with T.parallel(0, blocks) as t:
                first = T.bind(t * block)
                count = T.bind(T.min(block, shape.rows - first))
                with T.serial(0, shape.groups) as group:
                    left_row = rows(first, count, group)
                    with T.serial(0, wides) as number:
                        wide(first, count, left_row, group, number)
    return Built(builder.get(), signature.parameters)


def _block(shape: Layout, per_tile: int, generator: str) -> int:
    """Rows of a block: whole tiles, within the workspace, and enough blocks for the threads."""
    tiles = -(-shape.rows // per_tile)
    row_bytes = WIDE * 4 + (4 * shape.depth if shape.gathered else 0)
    most = max(1, min(MOST_ROWS[generator], WORKSPACE[generator] // row_bytes) // per_tile)
    if generator == "llvm" and tiles >= FEWEST_TILES:
        most = min(most, -(-tiles // FEWEST_TILES))
    blocks = -(-tiles // most)
    return -(-tiles // blocks) * per_tile


def _places(sizes: dict[str, int]) -> dict[str, int]:
    """Offsets of the parts of a workspace, each aligned to 64 bytes, and its `end`."""
    places = {}
    offset = 0
    for name, size in sizes.items():
        places[name] = offset
        offset += -(-size // 64) * 64
    return {**places, "end": offset}
