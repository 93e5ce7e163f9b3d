"""Integer products of two run-time tensors, matrix by matrix, for any CPU and any C compiler: one sum at a time.

codes x codes: attention in integers. bits x bits: scores of binary queries and keys, d - 2 popcount(q xor k).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from subbyte.errors import FormatError
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels.kernels.any_cpu.portable import count_bits
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import each_row
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.operators import WORD, Bits, Codes, MatMul, Product

Integers = Product[Codes, Codes] | Product[Bits, Bits]


def _build(op: Integers, elements: int, step: Callable[[Any, Any, Any], Any], finish: Callable[[Any], Any]) -> Built:
    """A row and a column of a matrix have `elements` stored elements; step(total, left, right) is the new total."""
    shape = op.geometry
    assert isinstance(shape, MatMul)
    rows, columns, dtype = shape.batch * shape.rows, shape.columns, op.left.dtype
    with prim_func("run_time_product") as signature:
        left = signature.input(OWN_INPUTS[0], (rows * elements,), dtype)
        right = signature.input(OWN_INPUTS[1], (shape.batch * columns * elements,), dtype)
        epilogue = EpilogueEmitter(op.epilogue, rows, columns, signature)
        with each_row(rows, elements * columns) as row:
            begin = T.bind(row // shape.rows * (columns * elements))  # of the right matrix
            with T.serial(0, columns) as column:
                total = T.alloc_buffer((1,), "int32")
                T.buffer_store(total, T.int32(0), [0])
                with T.serial(0, elements) as k:
                    place = column * elements + k if shape.transposed else k * columns + column
                    T.buffer_store(total, step(total[0], left[row * elements + k], right[begin + place]), [0])
                epilogue.emit(finish(total[0]), row, column)
    return signature.built()


def _too_long(op: Product[Codes, Codes]) -> str | None:
    if not isinstance(op.geometry, MatMul):
        return "a convolution"
    try:
        check_accumulator(op.geometry.depth, op.left.largest, op.right.largest)
    except FormatError as error:
        return str(error)
    return None


@kernel("run-time-codes", serves=Product[Codes, Codes], prefer=-1, refuses=_too_long)  # batch-matmul-codes is faster
def codes_by_codes(op: Product[Codes, Codes]) -> Built:
    zero, other = op.left.zero_point, op.right.zero_point

    def step(total: Any, left: Any, right: Any) -> Any:
        return total + (T.Cast("int32", left) - zero) * (T.Cast("int32", right) - other)

    return _build(op, op.geometry.depth, step, lambda total: total)


def _not_along_the_depth(op: Product[Bits, Bits]) -> str | None:
    if not isinstance(op.geometry, MatMul):
        return "a convolution"
    if not op.geometry.transposed or {op.left.channels, op.right.channels} != {op.geometry.depth}:
        return "bits are not packed along the reduction"
    return None


@kernel("run-time-popcount", serves=Product[Bits, Bits], refuses=_not_along_the_depth)
def bits_by_bits(op: Product[Bits, Bits]) -> Built:
    depth = op.geometry.depth
    return _build(
        op,
        -(-depth // WORD),
        lambda total, left, right: total + count_bits(left ^ right, 1),
        lambda total: depth - 2 * total,
    )
