"""An epilogue on its own: quantize, binarize, add a residual, activate. Bound by memory.

Where no step or store depends on the channel, the tensor is one long row, so that few channels do not waste lanes.
"""

from __future__ import annotations

from typing import Any

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, each_row, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.operators import WORD, Combine, Elementwise


def _by_channel(op: Elementwise) -> bool:
    """Whether the result of an element depends on its channel or row."""
    elsewhere = (step for step in op.epilogue.steps if not step.depends_on_value_only)
    return op.epilogue.stores_bits or not all(isinstance(step, Combine) for step in elsewhere)


def _shape(op: Elementwise, lanes: int) -> tuple[int, int]:
    """Rows and channels of the loops: those of the operator, or one long row split into rows of whole vectors."""
    elements = op.rows * op.channels
    if _by_channel(op) or (op.channels % (2 * lanes) == 0 and op.rows > 1):
        return op.rows, op.channels
    for channels in (1024, 512, 256, 128, 64, 32):
        if elements % channels == 0 and channels % lanes == 0:
            return elements // channels, channels
    return 1, elements


def build(op: Elementwise, lanes: int) -> Built:
    rows, channels = _shape(op, lanes)
    words = op.epilogue.stores_bits
    # Whole words in each iteration of the loop: the positions of their bits are then constants.
    unroll = WORD // lanes if words and lanes > 1 else 1
    with prim_func("elementwise") as signature:
        x = signature.input(OWN_INPUTS[0], (rows, channels), "float32")
        epilogue = EpilogueEmitter(op.epilogue, rows, channels, signature, x86=lanes >= 8)
        with each_row(rows, channels) as row:

            def element(c: Any, n: int) -> None:
                epilogue.emit(x[row, at(c, n)], row, c)

            along(channels, lanes, element, unroll)
    return signature.built()


vector_rows("elementwise", Elementwise, build)
