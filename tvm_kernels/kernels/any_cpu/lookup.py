"""A table look-up: one load for each element. Where only the byte counts, the table holds what is stored."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.rowwise import rows_per_tile
from subbyte.tvm_kernels.kernels.tir.signature import Signature
from subbyte.tvm_kernels.operators.lookup import Lookup


@kernel("lookup", serves=Lookup)
def lookup(op: Lookup) -> Built:
    block = rows_per_tile(op.rows, op.channels)
    stored = op.stored()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("lookup")
        T.func_attr({"tirx.noalias": True})
        signature = Signature()
        codes = signature.input(OWN_INPUTS[0], (op.rows, op.channels), "uint8")
        store = _by_epilogue(op, signature) if stored is None else _as_stored(op, signature, stored)
        with T.parallel(0, -(-op.rows // block)) as tile, T.serial(0, T.min(block, op.rows - tile * block)) as i:
            row = T.bind(tile * block + i)
            with T.serial(0, op.channels) as channel:
                store(T.bind(T.Cast("int32", codes[row, channel])), row, channel)
    return Built(builder.get(), signature.parameters)


def _as_stored(op: Lookup, signature: Signature, stored: list[Any]) -> Any:
    """Each output has a table of its own, of bytes or floats."""
    tables = [signature.constant("table", table) for table in stored]
    outputs = [signature.output(i, (op.rows, op.channels), str(table.dtype)) for i, table in enumerate(stored)]

    def store(byte: Any, row: Any, channel: Any) -> None:
        for table, output in zip(tables, outputs, strict=True):
            T.buffer_store(output, table[byte], [row, channel])

    return store


def _by_epilogue(op: Lookup, signature: Signature) -> Any:
    """Steps by channel, by row or with another tensor, and words of signs, are computed for each element."""
    table = signature.constant("table", op.table)
    epilogue = EpilogueEmitter(op.epilogue, op.rows, op.channels, signature)
    return lambda byte, row, channel: epilogue.emit(table[byte], row, channel)
