"""A table look-up: one load for each element. Where the result depends only on the byte, tables hold the outputs."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import each_row
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import Signature, prim_func
from subbyte.tvm_kernels.operators.lookup import Lookup


@kernel("lookup", serves=Lookup)
def lookup(op: Lookup) -> Built:
    stored = op.stored()
    with prim_func("lookup") as signature:
        codes = signature.input(OWN_INPUTS[0], (op.rows, op.channels), "uint8")
        store = _by_epilogue(op, signature) if stored is None else _as_stored(op, signature, stored)
        with each_row(op.rows, op.channels) as row, T.serial(0, op.channels) as channel:
            store(T.bind(T.Cast("int32", codes[row, channel])), row, channel)
    return signature.built()


def _as_stored(op: Lookup, signature: Signature, stored: list[Any]) -> Any:
    """Each output has its own table, of bytes or floats."""
    tables = [signature.constant("table", table) for table in stored]
    outputs = [signature.output(i, (op.rows, op.channels), str(table.dtype)) for i, table in enumerate(stored)]

    def store(byte: Any, row: Any, channel: Any) -> None:
        for table, output in zip(tables, outputs, strict=True):
            T.buffer_store(output, table[byte], [row, channel])

    return store


def _by_epilogue(op: Lookup, signature: Signature) -> Any:
    """The epilogue computed for each element: steps by channel, by row or with another tensor, and stores of bits."""
    table = signature.constant("table", op.table)
    epilogue = EpilogueEmitter(op.epilogue, op.rows, op.channels, signature)
    return lambda byte, row, channel: epilogue.emit(table[byte], row, channel)
