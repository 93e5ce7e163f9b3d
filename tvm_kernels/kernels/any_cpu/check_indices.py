"""The range check of run-time indices. An index out of range ends the run, so later kernels do not check again."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.abi import CHECKS
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators.check_indices import CheckIndices

FOUND = 4  # int64: position, value, lowest and highest of subbyte_failure; the position is -1 if all are in range


@kernel("check-indices", serves=CheckIndices)
def check_indices(op: CheckIndices) -> Built:
    """One tile: the error names the first index out of range, independent of the number of threads."""
    columns = len(op.sizes)
    with prim_func("check_indices", {CHECKS: 1}) as signature:
        given = signature.input(OWN_INPUTS[0], (op.count,), op.dtype)
        checked = signature.output(0, (op.count,), "int32")
        found = view(signature.workspace(8 * FOUND), (FOUND,), "int64")
        T.buffer_store(found, T.int64(-1), [0])
        with T.serial(0, op.count // columns) as row:
            for column, size in enumerate(op.sizes):
                place = T.bind(row * columns + column)
                index = T.bind(T.Cast("int64", given[place]))
                lowest = -size if op.negative else 0
                outside = T.Or(index < T.int64(lowest), index >= T.int64(size))
                with T.If(T.And(outside, found[0] < T.int64(0))), T.Then():
                    for i, value in enumerate((T.Cast("int64", place), index, T.int64(lowest), T.int64(size - 1))):
                        T.buffer_store(found, value, [i])
                from_start = T.Select(index < T.int64(0), index + T.int64(size), index)
                T.buffer_store(checked, T.Cast("int32", from_start), [place])
    return signature.built()
