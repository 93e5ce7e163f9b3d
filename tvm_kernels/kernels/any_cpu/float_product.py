"""Float32 activations with constant weights: matrix product and convolution.

float       float32 weights: layers that are not quantized.
float-int8  weight-only: weights of eight bits or fewer with one scale for each channel, a byte each in the bundle;
            levels are converted to float32 when they are read, scales are in the epilogue.
float-lookup  weight-only: weights of real levels, with scales by channel or by group, packed in the bundle; the level
            of a code is looked up when it is read.
            Of the time of `float` on the same weights (a busy two-core Xeon, shortest of 60 interleaved calls of
            compile_kernel): 1.00 to 1.01 with AVX-512, 1.02 to 1.03 with AVX2 at 32 to 197 rows; at 1 to 8 rows of
            768x768, weights not in cache, 0.35 to 0.84 and 0.43 to 0.56; in cache, 0.88 to 1.18 at 1 to 4 rows. Without
            AVX2 3.2 at 1 row in cache, 2.1 at 2, 0.9 to 1.3 from 3 on: chosen there for a quarter of the bytes.

Weights are packed into panels of columns. A thread takes a block of rows (of a convolution: gathers their patches once)
and loops over the panels, one register tile at a time; the epilogue follows each tile while it is in L1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.float_tile import (
    Registers,
    multiply_rows,
    panels,
    rows_per_block,
    store_panel,
    tile_rows,
    tiled_rows,
)
from subbyte.tvm_kernels.kernels.any_cpu.float_weight import declare_weight
from subbyte.tvm_kernels.kernels.any_cpu.im2col import gather, matrices_of
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import smallest_integer
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import Float, FloatWeight, Product


def build(op: Product[Float, FloatWeight | LowBitTensor], registers: Registers) -> Built:
    """The product of `op` with tiles of `registers`."""
    conv, shape = op.geometry.as_conv(), matrices_of(op.geometry)
    lanes = registers.lanes
    cut = panels(shape.columns, registers)
    per_tile = tile_rows(shape.rows, registers)
    most = max(per_tile, registers.patch_bytes // (4 * shape.depth)) if shape.gathered else shape.rows
    block = rows_per_block(shape.rows, per_tile, shape.depth * shape.columns * shape.groups, most)
    blocks = -(-shape.rows // block)
    words = op.epilogue.stores_bits
    panel_count = cut.wide + cut.narrow
    # A single block of rows (for instance a vector) is distributed over threads by columns instead.
    shared_columns = blocks == 1 and not shape.gathered and not words and panel_count > 1 and shape.rows <= per_tile
    store_lanes = lanes
    while shape.groups > 1 and shape.columns % store_lanes:
        store_lanes //= 2

    tile_floats = per_tile * cut.vectors * lanes
    with prim_func(op.name) as signature:
        source = signature.input(OWN_INPUTS[0], (conv.input_pixels * conv.channels,), "float32")
        weight = declare_weight(op.right, shape, cut, signature)
        scratch = signature.workspace(4 * (tile_floats + (block * shape.depth if shape.gathered else 0)))
        epilogue = EpilogueEmitter(op.epilogue, shape.rows, shape.columns * shape.groups, signature)
        tile = view(scratch, (tile_floats,), "float32")

        def part(first_row: Any, count: Any, left: Any, left_row: Any, group: Any, which: int, panel: Any) -> None:
            """All rows of a block times one panel."""
            _, width, first_column = cut.parts()[which]
            right = weight(group, first_column + panel * width, width)
            column = T.bind(first_column + panel * width)
            short = cut.channels(width, shape.columns)

            def store(index: Any, load: Any) -> None:
                row = T.bind(first_row + index)
                first_channel = group * shape.columns
                store_panel(epilogue, load, row, first_channel, column, width, shape.columns, short, store_lanes)

            # The buffer of patches is large enough for whole tiles.
            multiply_rows(
                *(count, per_tile, width, lanes, shape.depth, left, left_row, right, tile, store),
                whole_tiles=shape.gathered,
            )

        def block_of_rows(first_row: Any, count: Any, run: Any) -> None:
            with T.serial(0, shape.groups) as group:
                if shape.gathered:
                    patches = view(scratch, (block * shape.depth,), "float32", 4 * tile_floats)

                    def pixel(index: Any, channel: Any) -> Any:
                        return source[index * conv.channels + channel]

                    gather(conv, conv.channels, pixel, patches, first_row, count, group, lambda c: T.float32(0))
                    run(first_row, count, patches, 0, group)
                else:
                    run(first_row, count, source, first_row, group)

        def all_panels(first_row: Any, count: Any, left: Any, left_row: Any, group: Any) -> None:
            for which, (panel_number, _, _) in enumerate(cut.parts()):
                with T.serial(0, panel_number) as panel:
                    part(first_row, count, left, left_row, group, which, panel)

        if shared_columns:
            with T.parallel(0, panel_count) as t:
                split = cut.parts()
                if len(split) == 1:
                    part(0, shape.rows, source, 0, 0, 0, t)
                else:
                    with T.If(t < cut.wide):
                        with T.Then():
                            part(0, shape.rows, source, 0, 0, 0, t)
                        with T.Else():
                            part(0, shape.rows, source, 0, 0, 1, t - cut.wide)
        else:
            with T.parallel(0, blocks) as t:
                first = T.bind(t * block)
                block_of_rows(first, T.bind(T.min(block, shape.rows - first)), all_panels)
    return signature.built()


def _not_bytes(op: Product[Float, LowBitTensor]) -> str | None:
    if not op.right.format.levels.integer:
        return f"levels of {op.right.format.name} are real numbers"
    if op.group_size:
        return "scales by group"
    if smallest_integer(np.array(op.right.limits)) != "int8":
        return f"levels of {op.right.format.name} need more than 8 bits"
    return None


def _not_real(op: Product[Float, LowBitTensor]) -> str | None:
    return f"levels of {op.right.format.name} are integers" if op.right.format.levels.integer else None


tiled_rows("float", Product[Float, FloatWeight], build)
tiled_rows("float-int8", Product[Float, LowBitTensor], build, _not_bytes)
tiled_rows("float-lookup", Product[Float, LowBitTensor], build, _not_real)
