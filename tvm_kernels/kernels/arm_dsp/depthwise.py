"""Depthwise convolution for Arm's DSP extension: four channels in a word, multiplied one at a time from its halves.

The input rows under one output row are copied to workspace with their padding, so that every tap of every pixel is at a
fixed offset; weights are decoded once, from their own bits, to words of two channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.kernels.any_cpu.depthwise import not_depthwise
from subbyte.tvm_kernels.kernels.arm_dsp.int16_pairs import (
    declare_decoder,
    even_bytes,
    high_product,
    low_product,
    odd_bytes,
    pairs_in_word,
    words_in,
)
from subbyte.tvm_kernels.kernels.arm_dsp.product import quad_order, refuses_pairs
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import Codes, Conv2d, Product

MOST_ROW_BYTES = 8192
UNROLLED_TAPS = 12


def _refuses(op: Product[Codes, LowBitTensor]) -> str | None:
    reason = not_depthwise(op) or refuses_pairs(op)
    if reason is not None:
        return reason
    shape = op.geometry.as_conv()
    if shape.channels % 4:
        return "channels are not a multiple of 4"
    if any(shape.padding) and shape.kernel[0] * shape.padded_width * shape.channels > MOST_ROW_BYTES:
        return f"padded rows of more than {MOST_ROW_BYTES} bytes"
    return None


@kernel("dsp-depthwise", serves=Product[Codes, LowBitTensor], needs={"dsp"}, prefer=30, refuses=_refuses)
def dsp_depthwise(op: Product[Codes, LowBitTensor]) -> Built:
    shape = op.geometry.as_conv()
    zero_point, channels = op.left.zero_point, shape.channels
    taps, fours = shape.taps, shape.channels // 4
    # [tap][four channels][0 2, 1 3]
    matrix = op.right.payload.codes.reshape(channels, taps)
    codes = matrix.T[:, quad_order(channels)].reshape(1, taps * fours * 2, 2)
    each = pairs_in_word(op.right.format.code_bits)
    weight_words = -(-taps * fours * 2 // each) * each
    padded = any(shape.padding)
    width = shape.padded_width * fours  # words of a padded row
    row_words = shape.kernel[0] * width if padded else 0

    with prim_func("depthwise") as signature:
        stored = shape.input_pixels * channels
        bytes_in = signature.input(OWN_INPUTS[0], (stored,), "uint8")
        decode = declare_decoder(op.right.format, codes, signature)
        starts = None
        if zero_point:
            sums = op.right.sums(taps).reshape(channels)
            starts = signature.constant("start", (-zero_point * sums).astype(np.int32))
        scratch = signature.workspace((weight_words + row_words) * 4)
        epilogue = EpilogueEmitter(op.epilogue, shape.pixels, channels, signature)
        source = view(bytes_in, (stored // 4,), "uint32")
        weights = words_in(scratch, weight_words)
        rows = view(scratch, (row_words,), "uint32", weight_words * 4) if padded else source
        # One tile, as C sources have no threads: weights are decoded once.
        decode(0, weights.one)
        with T.serial(0, shape.batch * shape.out_height) as out_row:
            image = T.bind(out_row // shape.out_height)
            top = T.bind((out_row % shape.out_height) * shape.stride[0] - shape.padding[0])
            begin: Any = 0
            if padded:
                _copy_rows(shape, source, rows, image, top, zero_point)
            else:
                begin = T.bind((image * shape.height + top) * width)
            down = width if padded else width * shape.dilation[0]
            with T.serial(0, shape.out_width) as ox, T.serial(0, fours) as four:
                at = T.bind(begin + ox * (shape.stride[1] * fours) + four)
                totals = [T.alloc_buffer((1,), "int32") for _ in range(4)]
                for n, total in enumerate(totals):
                    T.buffer_store(total, T.int32(0) if starts is None else starts[four * 4 + n], [0])

                def tap(index: Any, weight: Any, totals: list[Any] = totals) -> None:
                    word = T.bind(rows[index])
                    bytes_of = (T.bind(even_bytes(word)), T.bind(odd_bytes(word)))
                    for offset, (halves, pair) in enumerate(zip(bytes_of, weights.load(weight, 2), strict=True)):
                        low, high = totals[offset], totals[offset + 2]
                        T.buffer_store(low, low_product(low[0], halves, pair), [0])
                        T.buffer_store(high, high_product(high[0], halves, pair), [0])

                def kernel_row(ky: Any, at: Any = at, four: Any = four, tap: Any = tap, down: int = down) -> None:
                    for kx in range(shape.kernel[1]):
                        number = ky * shape.kernel[1] + kx
                        tap(at + ky * down + kx * shape.dilation[1] * fours, (number * fours + four) * 2)

                if taps <= UNROLLED_TAPS:
                    for ky in range(shape.kernel[0]):
                        kernel_row(ky)
                else:
                    with T.serial(0, shape.kernel[0]) as ky:
                        kernel_row(ky)
                row = T.bind(out_row * shape.out_width + ox)
                for n, total in enumerate(totals):
                    epilogue.emit(total[0], row, four * 4 + n)
    return signature.built()


def _copy_rows(shape: Conv2d, source: Any, rows: Any, image: Any, top: Any, zero_point: int) -> None:
    """The input rows under an output row, one for each row of the kernel, with padding on all sides."""
    fours = shape.channels // 4
    width = shape.padded_width * fours
    inner, left = shape.width * fours, shape.padding[1] * fours
    fill = T.uint32(zero_point * 0x01010101)

    def pad(begin: Any, words: int) -> None:
        if words:
            with T.serial(0, words) as i:
                T.buffer_store(rows, fill, [begin + i])

    with T.serial(0, shape.kernel[0]) as ky:
        iy = T.bind(top + ky * shape.dilation[0])
        to = T.bind(ky * width)
        with T.If(T.And(iy >= 0, iy < shape.height)):
            with T.Then():
                pad(to, left)
                begin = T.bind((image * shape.height + iy) * inner)
                with T.serial(0, inner) as i:
                    T.buffer_store(rows, source[begin + i], [to + left + i])
                pad(to + left + inner, width - left - inner)
            with T.Else():
                pad(to, width)
