"""Depthwise convolution: each channel has its own small filter. Vectors of channels, the innermost axis.

Weights are few: levels of one byte or two, by tap and channel. In C sources they stay packed and are decoded first.
Padding is level 0 and is skipped; the zero point is subtracted from each element that is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.im2col import corner
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, rows_per_tile, vector_rows
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import PANEL, declare_codes, nbytes, smallest_integer, weight_of
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import Signature, prim_func, view
from subbyte.tvm_kernels.kernels.tir.vectors import splat, vector_type
from subbyte.tvm_kernels.operators import Codes, Conv2d, Epilogue, Float, FloatWeight, Product


def not_depthwise(op: Any) -> str | None:
    """Why the operator is not a depthwise convolution, or None."""
    return None if op.geometry.as_conv().is_depthwise else "not a depthwise convolution with one filter a channel"


def _refuses(op: Product[Codes, LowBitTensor]) -> str | None:
    if op.group_size:
        return "scales by group"
    return not_depthwise(op)


Weights = Callable[[Any, int], Any]  # (index of tap * channels + channel, lanes) -> int32 or float32 weights


def _emit(
    shape: Conv2d,
    epilogue: Epilogue,
    stored: str,
    zero_point: int,
    lanes: int,
    declare: Callable[[Signature], tuple[int, Callable[[Any], Weights]]],
    per_tile: int,
) -> Built:
    """A kernel whose tiles are `per_tile` output pixels each.

    declare(signature) declares the weights; it returns their bytes of workspace and the function that decodes them.
    """
    channels = shape.channels
    pixels = shape.pixels
    dtype = "float32" if stored == "float32" else "int32"
    with prim_func("depthwise") as signature:
        source = signature.input(OWN_INPUTS[0], (shape.input_pixels * channels,), stored)
        scratch_bytes, prepare = declare(signature)
        scratch = signature.workspace(scratch_bytes) if scratch_bytes else None
        emitter = EpilogueEmitter(epilogue, pixels, channels, signature)
        with T.parallel(0, -(-pixels // per_tile)) as tile:
            weights = prepare(scratch)
            with T.serial(0, T.min(per_tile, pixels - tile * per_tile)) as i:
                pixel = T.bind(tile * per_tile + i)
                image, top, left = corner(shape, pixel)

                def block(channel: Any, n: int, vectors: int) -> None:
                    """The sums of `vectors` vectors of channels, and their epilogue."""
                    place = at(0, n)
                    sums = [T.alloc_buffer((n,), dtype) for _ in range(vectors)]
                    zero = T.float32(0) if dtype == "float32" else IntImm(dtype, 0)
                    for one in sums:
                        T.buffer_store(one, splat(zero, n), [place])
                    with T.serial(0, shape.kernel[0]) as ky:
                        iy = T.bind(top + ky * shape.dilation[0])
                        with T.If(T.And(iy >= 0, iy < shape.height)), T.Then(), T.serial(0, shape.kernel[1]) as kx:
                            ix = T.bind(left + kx * shape.dilation[1])
                            with T.If(T.And(ix >= 0, ix < shape.width)), T.Then():
                                begin = T.bind(((image * shape.height + iy) * shape.width + ix) * channels + channel)
                                tap = T.bind((ky * shape.kernel[1] + kx) * channels + channel)
                                for v, one in enumerate(sums):
                                    value = source[at(begin + v * n, n)]
                                    if dtype == "int32":
                                        value = T.Cast(vector_type(dtype, n), value)
                                        value = value - splat(IntImm(dtype, zero_point), n) if zero_point else value
                                    T.buffer_store(one, one[place] + value * weights(tap + v * n, n), [place])
                    for v, one in enumerate(sums):
                        emitter.emit(one[place], pixel, channel + v * n)

                # In C sources: four scalars at a time.
                group = 4 if lanes <= 4 else 2
                whole = channels // (lanes * group)
                if whole:
                    with T.serial(0, whole) as b:
                        block(b * (lanes * group), lanes, group)
                rest = channels - whole * lanes * group
                along(rest, lanes, lambda c, n: block(whole * lanes * group + c, n, 1))
    return signature.built()


def declare_by_tap(
    op: Product[Codes, LowBitTensor], signature: Signature, byte_of: Callable[[int], int] | None = None
) -> tuple[int, Callable[[Any], Any]]:
    """Declare the packed weights; returns their bytes of workspace, and what decodes them there as [taps * channels].

    Decoded are levels, or with `byte_of` the int8 byte_of(level).
    """
    shape = op.geometry.as_conv()
    channels, taps = shape.channels, shape.taps
    # A row for each tap, decoded in panels of 8 channels.
    weight = weight_of(op, 1)
    decode, dtype = declare_codes(weight, signature, byte_of)
    panel_bytes = -(-taps * PANEL * nbytes(dtype) // 64) * 64

    def prepare(scratch: Any) -> Any:
        panel = view(scratch, (taps * PANEL,), dtype)
        decoded = view(scratch, (taps * channels,), dtype, panel_bytes)
        with T.serial(0, weight.panels) as p:
            decode(0, p, panel)
            with T.serial(0, taps) as tap, T.serial(0, T.min(PANEL, channels - p * PANEL)) as c:
                T.buffer_store(decoded, panel[tap * PANEL + c], [tap * channels + p * PANEL + c])
        return decoded

    return panel_bytes + taps * channels * nbytes(dtype), prepare


def _quantized(op: Product[Codes, LowBitTensor], lanes: int) -> Built:
    shape = op.geometry.as_conv()
    channels, taps = shape.channels, shape.taps

    pixels = shape.pixels
    in_c = current_code_generator() == "c"

    def packed(signature: Signature) -> tuple[int, Callable[[Any], Weights]]:
        nbytes_of, decode = declare_by_tap(op, signature)

        def prepare(scratch: Any) -> Weights:
            decoded = decode(scratch)
            return lambda index, n: T.Cast(vector_type("int32", n), decoded[at(index, n)])

        return nbytes_of, prepare

    def plain(signature: Signature) -> tuple[int, Callable[[Any], Weights]]:
        matrix = op.right.integers().reshape(channels, taps)
        values = signature.constant("weight", matrix.T.reshape(-1).astype(smallest_integer(matrix)))
        return 0, lambda scratch: lambda index, n: T.Cast(vector_type("int32", n), values[at(index, n)])

    # One tile in C sources, which have no threads: weights are decoded once.
    per_tile = pixels if in_c else rows_per_tile(pixels, channels * taps)
    declare = packed if in_c else plain
    return _emit(shape, op.epilogue, "uint8", op.left.zero_point, lanes, declare, per_tile)


vector_rows("depthwise", Product[Codes, LowBitTensor], _quantized, _refuses, prefer=10)


def _float(op: Product[Float, FloatWeight], lanes: int) -> Built:
    shape = op.geometry.as_conv()
    taps = shape.taps

    def declare(signature: Signature) -> tuple[int, Callable[[Any], Weights]]:
        matrix = op.right.values.astype(np.float32).reshape(shape.channels, taps)
        values = signature.constant("weight", np.ascontiguousarray(matrix.T).reshape(-1))
        return 0, lambda scratch: lambda index, n: values[at(index, n)]

    per_tile = rows_per_tile(shape.pixels, shape.channels * taps)
    return _emit(shape, op.epilogue, "float32", 0, lanes, declare, per_tile)


# Preferred to float_product.py, which supports float products with any number of groups.
vector_rows("depthwise", Product[Float, FloatWeight], _float, not_depthwise, prefer=5)
