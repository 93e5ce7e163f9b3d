"""Products of two run-time tensors, matrix by matrix: attention scores and their product with the values.

The right operand is used where it lies if its rows are whole vectors; else it is packed into workspace first, by every
thread for the matrix it works on. A transposed one (scores) is packed by transposing blocks in registers.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Shuffle

from subbyte.tvm_kernels.kernels.any_cpu.float_tile import (
    Registers,
    multiply_rows,
    panels,
    store_panel,
    tile_rows,
    tiled_rows,
)
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.rowwise import at
from subbyte.tvm_kernels.kernels.tir.signature import Signature, view
from subbyte.tvm_kernels.operators import Float, MatMul, Product

FEWEST_TILES = 6  # one matrix a thread would leave threads idle with a few heads


def build(op: Product[Float, Float], registers: Registers) -> Built:
    """The product of `op` with tiles of `registers`."""
    shape = op.geometry
    assert isinstance(shape, MatMul)
    lanes = registers.lanes
    cut = panels(shape.columns, registers)
    per_tile = tile_rows(shape.rows, registers)
    packed = shape.transposed or shape.columns % lanes != 0
    # As few blocks of rows as keep the threads busy: each of them packs the right operand again.
    block = -(-shape.rows // (per_tile * -(-FEWEST_TILES // shape.batch))) * per_tile
    blocks = -(-shape.rows // block)
    tile_floats = per_tile * cut.vectors * lanes
    width_of_right = cut.padded if packed else shape.columns

    with IRBuilder() as builder, T.prim_func():
        T.func_name("batch_matmul")
        T.func_attr({"tirx.noalias": True})
        signature = Signature()
        left = signature.input(OWN_INPUTS[0], (shape.batch * shape.rows * shape.depth,), "float32")
        right = signature.input(OWN_INPUTS[1], (shape.batch * shape.depth * shape.columns,), "float32")
        scratch = signature.workspace(4 * (tile_floats + (cut.padded * shape.depth if packed else 0)))
        epilogue = EpilogueEmitter(op.epilogue, shape.batch * shape.rows, shape.columns, signature)
        tile = view(scratch, (tile_floats,), "float32")
        operand = view(scratch, (cut.padded * shape.depth,), "float32", 4 * tile_floats) if packed else right
        with T.parallel(0, shape.batch * blocks) as t:
            matrix = T.bind(t // blocks)
            first = T.bind((t % blocks) * block)
            count = T.bind(T.min(block, shape.rows - first))
            begin_right = T.bind(matrix * (shape.depth * shape.columns))
            if packed:
                _pack(shape, right, begin_right, operand, width_of_right, lanes)

            def panel_of(column: Any, width: int) -> None:
                """All rows of the block x one panel of columns."""
                base_right = T.bind(column if packed else begin_right + column)
                first_row = matrix * shape.rows + first
                short = cut.channels(width, shape.columns)

                def vector(v: int, k: Any) -> Any:
                    return operand[at(base_right + k * width_of_right + v * lanes, lanes)]

                def store(index: Any, load: Any) -> None:
                    row = T.bind(first_row + index)
                    store_panel(epilogue, load, row, 0, column, width, shape.columns, short, lanes)

                multiply_rows(count, per_tile, width, lanes, shape.depth, left, first_row, vector, tile, store)

            for number, width, first_column in cut.parts():
                with T.serial(0, number) as panel:
                    panel_of(T.bind(first_column + panel * width), width)
    return Built(builder.get(), signature.parameters)


def _pack(shape: MatMul, right: Any, begin: Any, operand: Any, width: int, lanes: int) -> None:
    """Emit operand[depth, width] = one matrix of the right operand, transposed if need be, padded with zeros."""
    depth, columns = shape.depth, shape.columns
    if not shape.transposed:
        with T.serial(0, depth) as k:
            with T.serial(0, columns) as c:
                T.buffer_store(operand, right[begin + k * columns + c], [k * width + c])
            with T.serial(columns, width) as c:
                T.buffer_store(operand, T.float32(0), [k * width + c])
        return
    square = min(lanes, 8)
    while square > min(depth, columns):
        square //= 2
    if square == 1:
        with T.serial(0, columns) as c, T.serial(0, depth) as k:
            T.buffer_store(operand, right[begin + c * depth + k], [k * width + c])
    else:
        # Blocks reach back at both ends, so that all are whole.
        with T.serial(0, -(-columns // square)) as i:
            c = T.bind(T.min(i * square, columns - square))
            with T.serial(0, -(-depth // square)) as j:
                k = T.bind(T.min(j * square, depth - square))
                loaded = [T.bind(right[at(begin + (c + r) * depth + k, square)]) for r in range(square)]
                for r, turned in enumerate(_transposed(loaded)):
                    T.buffer_store(operand, turned, [at((k + r) * width + c, square)])
    if columns < width:
        with T.serial(0, depth) as k, T.serial(columns, width) as c:
            T.buffer_store(operand, T.float32(0), [k * width + c])


def _transposed(rows: list[Any]) -> list[Any]:
    """n vectors of n lanes, transposed, n a power of two: halves are exchanged at distance n/2, n/4, ..., 1."""
    n = len(rows)
    distance = n // 2
    while distance:
        new = list(rows)
        for r in range(n):
            if r & distance:
                continue
            low = [i if not i & distance else n + i - distance for i in range(n)]
            high = [i + distance if not i & distance else n + i for i in range(n)]
            new[r] = T.bind(Shuffle([rows[r], rows[r + distance]], low))
            new[r + distance] = T.bind(Shuffle([rows[r], rows[r + distance]], high))
        rows = new
        distance //= 2
    return rows


tiled_rows("batch-matmul", Product[Float, Float], build)
