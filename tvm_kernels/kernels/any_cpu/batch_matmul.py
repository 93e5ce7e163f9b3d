"""Products of two run-time tensors, matrix by matrix: attention scores and their product with the values.

batch-matmul        float32. The right operand is read in place if its rows are whole vectors; else it is packed into
                    workspace first, by every thread for the matrix it works on. A transposed one (scores) is packed by
                    transposing blocks in registers.
batch-matmul-codes  integers as float32, exact: all partial sums are integers below 2^24. Codes are converted to levels
                    in workspace, those of the left operand once for each block of rows. 0.97 to 1.09 of the time that
                    `batch-matmul` takes for the same levels in float32, 0.06 to 1.26 of that of `run-time-codes`: 3
                    matrices of 197x64x197 and 197x197x64, 2 of 50x256x50; AVX-512, AVX2 and neither; a busy two-core
                    Xeon, shortest of 15 interleaved calls of compile_kernel.
"""

from __future__ import annotations

from typing import Any

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
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import at
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.kernels.tir.vectors import splat, vector_type
from subbyte.tvm_kernels.operators import Codes, Float, MatMul, Product

Operand = Float | Codes
FLOAT32_INTEGERS = 1 << 24  # all integers up to it are float32
FEWEST_ROWS = (
    3  # of a transposed matrix of 64x512: 2 rows take 3.1 (AVX-512), 1.8 (AVX2), 0.8 times as long as in integers
)
FEWEST_TILES = 6  # with one tile for each matrix, threads would be idle where there are few heads


def build(op: Product[Operand, Operand], registers: Registers) -> Built:
    """The product of `op` with tiles of `registers`."""
    shape, of_codes = op.geometry, op.of_integers
    assert isinstance(shape, MatMul)
    lanes = registers.lanes
    cut = panels(shape.columns, registers)
    per_tile = tile_rows(shape.rows, registers)
    # Codes are converted to levels once if several tiles of rows read them.
    packed = shape.transposed or shape.columns % lanes != 0 or (of_codes and shape.rows > per_tile)
    # The fewest blocks of rows that keep the threads busy: each block packs the right operand again.
    block = -(-shape.rows // (per_tile * -(-FEWEST_TILES // shape.batch))) * per_tile
    blocks = -(-shape.rows // block)
    tile_floats = per_tile * cut.vectors * lanes
    width_of_right = cut.padded if packed else shape.columns

    with prim_func("batch_matmul") as signature:
        left = signature.input(OWN_INPUTS[0], (shape.batch * shape.rows * shape.depth,), op.left.dtype)
        right = signature.input(OWN_INPUTS[1], (shape.batch * shape.depth * shape.columns,), op.right.dtype)
        packed_floats, left_floats = cut.padded * shape.depth * packed, block * shape.depth * of_codes
        scratch = signature.workspace(4 * (tile_floats + packed_floats + left_floats))
        epilogue = EpilogueEmitter(op.epilogue, shape.batch * shape.rows, shape.columns, signature)
        tile = view(scratch, (tile_floats,), "float32")
        operand = view(scratch, (packed_floats,), "float32", 4 * tile_floats) if packed else right
        levels = left
        if of_codes:
            levels = view(scratch, (left_floats,), "float32", 4 * (tile_floats + packed_floats))
        with T.parallel(0, shape.batch * blocks) as t:
            matrix = T.bind(t // blocks)
            first = T.bind((t % blocks) * block)
            count = T.bind(T.min(block, shape.rows - first))
            first_row = matrix * shape.rows + first
            begin_right = T.bind(matrix * (shape.depth * shape.columns))
            if packed:
                _pack(shape, op.right, right, begin_right, operand, width_of_right, lanes)
            if of_codes:
                _convert(op.left, left, first_row * shape.depth, count * shape.depth, levels)

            def panel_of(column: Any, width: int) -> None:
                """All rows of the block x one panel of columns."""
                base_right = T.bind(column if packed else begin_right + column)
                short = cut.channels(width, shape.columns)

                def vector(v: int, k: Any) -> Any:
                    loaded = operand[at(base_right + k * width_of_right + v * lanes, lanes)]
                    return loaded if packed else _level(op.right, loaded, lanes)

                def store(index: Any, load: Any) -> None:
                    row = T.bind(first_row + index)
                    store_panel(epilogue, load, row, 0, column, width, shape.columns, short, lanes)

                multiply_rows(
                    *(count, per_tile, width, lanes, shape.depth, levels, 0 if of_codes else first_row, vector, tile),
                    store,
                    whole_tiles=of_codes,  # the workspace is large enough for them
                )

            for number, width, first_column in cut.parts():
                with T.serial(0, number) as panel:
                    panel_of(T.bind(first_column + panel * width), width)
    return signature.built()


def _level(storage: Operand, stored: Any, lanes: int = 1) -> Any:
    """The level of a stored element, float32."""
    if not storage.integer:
        return stored
    wide = T.Cast(vector_type("float32", lanes), stored)
    return wide - splat(T.float32(storage.zero_point), lanes) if storage.zero_point else wide


def _convert(storage: Operand, codes: Any, begin: Any, count: Any, levels: Any) -> None:
    """Emit levels[count] = the levels of the codes from `begin` on."""
    with T.serial(0, count) as k:
        T.buffer_store(levels, _level(storage, codes[begin + k]), [k])


def _pack(shape: MatMul, storage: Operand, right: Any, begin: Any, operand: Any, width: int, lanes: int) -> None:
    """Emit operand[depth, width] = one matrix of the right operand, transposed if need be, padded with zeros."""
    depth, columns = shape.depth, shape.columns
    if not shape.transposed:
        with T.serial(0, depth) as k:
            with T.serial(0, columns) as c:
                T.buffer_store(operand, _level(storage, right[begin + k * columns + c]), [k * width + c])
            with T.serial(columns, width) as c:
                T.buffer_store(operand, T.float32(0), [k * width + c])
        return
    square = min(lanes, 8)
    while square > min(depth, columns):
        square //= 2
    if square == 1:
        with T.serial(0, columns) as c, T.serial(0, depth) as k:
            T.buffer_store(operand, _level(storage, right[begin + c * depth + k]), [k * width + c])
    else:
        # The last block of each axis overlaps the one before, so that all are whole.
        with T.serial(0, -(-columns // square)) as i:
            c = T.bind(T.min(i * square, columns - square))
            with T.serial(0, -(-depth // square)) as j:
                k = T.bind(T.min(j * square, depth - square))
                stored = [right[at(begin + (c + r) * depth + k, square)] for r in range(square)]
                loaded = [T.bind(_level(storage, row, square)) for row in stored]
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


def _inexact(op: Product[Codes, Codes]) -> str | None:
    if not isinstance(op.geometry, MatMul):
        return "a convolution"
    if op.geometry.depth * op.left.largest * op.right.largest > FLOAT32_INTEGERS:
        return "sums can exceed 2^24, above which float32 cannot represent every integer"
    if op.geometry.transposed and op.geometry.rows < FEWEST_ROWS:
        return "with so few rows, transposing the right operand costs more than it gains"
    if current_code_generator() == "c":
        return "C sources, whose CPU may have no FPU"
    return None


tiled_rows("batch-matmul", Product[Float, Float], build)
tiled_rows("batch-matmul-codes", Product[Codes, Codes], build, _inexact)
