"""Depthwise convolution on a CPU without a multiplier, for weights that are powers of two, their negatives, or zero.

A weight is decoded once to a byte of shift, sign and whether it is zero. The accumulation loop is the one over the
channels under a tap of the window: it shifts an activation, masks it, and adds it to the channel's sum or subtracts it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import IntegerLevels, LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.depthwise import declare_by_tap, not_depthwise
from subbyte.tvm_kernels.kernels.any_cpu.im2col import corner
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import Codes, Product

# A byte of a decoded weight. The exponent is in the lowest bits: RISC-V's shifts ignore the others.
NONZERO, EXPONENT = 0x40, 0x1F
UNROLL = 4


def shift_byte(level: int) -> int:
    """A power of two, its negative or zero, as an int8: negative for a negative one."""
    if level == 0:
        return 0
    return (-128 if level < 0 else 0) | NONZERO | (abs(level).bit_length() - 1)


def _add(total: Any, value: Any, byte: Any, levels: IntegerLevels) -> Any:
    """The sum after value x level, from the level's byte."""
    zero = IntImm("int32", 0)
    if levels.largest > 1:
        value = T.shift_left(value, byte & IntImm("int32", EXPONENT))
    if 0 in levels.values:
        value = value & (zero - (T.shift_right(byte, IntImm("int32", 6)) & IntImm("int32", 1)))
    if levels.values[0] < 0:
        sign = T.bind(T.shift_right(byte, IntImm("int32", 7)))
        value = (value ^ sign) - sign
    return total + value


def _refuses(op: Product[Codes, LowBitTensor]) -> str | None:
    magnitudes = np.abs(op.right.format.integer_levels.values)
    if (magnitudes & (magnitudes - 1)).any() or op.right.zero_point is not None:
        return f"weights are {op.right.format.name}, not powers of two"
    return "scales by group" if op.group_size else not_depthwise(op)


@kernel(
    "shift-add-depthwise", serves=Product[Codes, LowBitTensor], prefer=15, refuses=_refuses, without_multiplier=True
)
def depthwise(op: Product[Codes, LowBitTensor]) -> Built:
    shape, levels = op.geometry.as_conv(), op.right.format.integer_levels
    channels = shape.channels
    with prim_func("depthwise") as signature:
        source = signature.input(OWN_INPUTS[0], (shape.input_pixels * channels,), "uint8")
        weight_bytes, decode = declare_by_tap(op, signature, shift_byte)
        sums_at = -(-weight_bytes // 4) * 4
        scratch = signature.workspace(sums_at + channels * 4)
        epilogue = EpilogueEmitter(op.epilogue, shape.pixels, channels, signature)
        weights, sums = decode(scratch), view(scratch, (channels,), "int32", sums_at)
        with T.serial(0, shape.pixels) as pixel:
            image, top, left = corner(shape, pixel)
            with T.serial(0, channels) as c:
                T.buffer_store(sums, T.int32(0), [c])
            with T.serial(0, shape.kernel[0]) as ky:
                iy = T.bind(top + ky * shape.dilation[0])
                # Padding is level 0 and is skipped: the zero point is subtracted from what is read.
                with T.If(T.And(iy >= 0, iy < shape.height)), T.Then(), T.serial(0, shape.kernel[1]) as kx:
                    ix = T.bind(left + kx * shape.dilation[1])
                    with T.If(T.And(ix >= 0, ix < shape.width)), T.Then():
                        begin = T.bind(((image * shape.height + iy) * shape.width + ix) * channels)
                        tap = T.bind((ky * shape.kernel[1] + kx) * channels)

                        def accumulate(c: Any, _: int, begin: Any = begin, tap: Any = tap) -> None:
                            value = T.Cast("int32", source[begin + c])
                            value = T.bind(value - op.left.zero_point if op.left.zero_point else value)
                            byte = T.bind(T.Cast("int32", weights[tap + c]))
                            T.buffer_store(sums, _add(sums[c], value, byte, levels), [c])

                        along(channels, 1, accumulate, UNROLL)
            with T.serial(0, channels) as c:
                epilogue.emit(sums[c], pixel, c)
    return signature.built()
