"""Pooling, channels last: exact sums of levels, largest levels or values, averages; then the epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.tvm_kernels.kernels.any_cpu.im2col import corner
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, each_row, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.kernels.tir.vectors import splat, vector_type
from subbyte.tvm_kernels.operators import Pool2d


def _refuses(op: Pool2d) -> str | None:
    codes = op.activation.integer
    if op.function != "max" and codes != (op.function == "sum"):
        return f"'{op.function}' of {type(op.activation).__name__}; sums are of codes, averages of float32, max of both"
    return None


def build(op: Pool2d, lanes: int) -> Built:
    shape = op.geometry
    channels = shape.channels
    pixels = shape.pixels
    window = shape.taps
    integer = op.activation.integer
    dtype = "int32" if integer else "float32"
    zero_point = op.activation.zero_point
    with prim_func("pool") as signature:
        stored = (shape.input_pixels * channels,)
        x = signature.input(OWN_INPUTS[0], stored, "uint8" if integer else "float32")
        lowest = signature.constant("lowest", np.array([-np.inf], np.float32))
        epilogue = EpilogueEmitter(op.epilogue, pixels, channels, signature)
        with each_row(pixels, channels * window) as pixel:
            image, top, left = corner(shape, pixel)

            def pool(c: Any, n: int) -> None:
                place = at(0, n)
                total = T.alloc_buffer((n,), dtype)
                start = lowest[0] if op.function == "max" and not integer else T.float32(0)
                T.buffer_store(total, splat(IntImm("int32", 0) if integer else start, n), [place])
                inside = T.alloc_buffer((1,), "int32")
                T.buffer_store(inside, T.int32(0), [0])
                with T.serial(0, shape.kernel[0]) as ky:
                    iy = T.bind(top + ky * shape.dilation[0])
                    with T.If(T.And(iy >= 0, iy < shape.height)), T.Then(), T.serial(0, shape.kernel[1]) as kx:
                        ix = T.bind(left + kx * shape.dilation[1])
                        with T.If(T.And(ix >= 0, ix < shape.width)), T.Then():
                            begin = ((image * shape.height + iy) * shape.width + ix) * channels + c
                            value = x[at(begin, n)]
                            if integer:
                                value = T.Cast(vector_type("int32", n), value)
                            joined = T.max(total[place], value) if op.function == "max" else total[place] + value
                            T.buffer_store(total, joined, [place])
                            T.buffer_store(inside, inside[0] + 1, [0])
                result = total[place]
                if integer:
                    # Padding is level 0 and is skipped: the zero point is subtracted from what is read.
                    count = inside[0] if op.function == "sum" else IntImm("int32", 1)
                    result = result - splat(count * zero_point, n)
                elif op.function == "average":
                    count = IntImm("int32", window) if op.count_padding else inside[0]
                    result = result / splat(T.Cast("float32", count), n)
                epilogue.emit(result, pixel, c)

            along(channels, lanes, pool)
    return signature.built()


vector_rows("pool", Pool2d, build, _refuses)
