"""Bits x binary weights to bits, 32 output channels at once, without a population count (sliced_count.py).

bit-slice-depthwise  one filter a channel: input, weight and output words are of the same channels.
bit-slice            products and convolutions in C sources: each activation bit is broadcast to a word and compared
                     with the weights of 32 output channels, which are packed by output channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from subbyte.formats import LowBitTensor
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels.kernels.any_cpu.depthwise import not_depthwise
from subbyte.tvm_kernels.kernels.any_cpu.im2col import corner, gather, matrices_of
from subbyte.tvm_kernels.kernels.any_cpu.portable import not_binary_weights
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import each_row
from subbyte.tvm_kernels.kernels.any_cpu.sliced_count import SlicedCount, Thresholds, thresholds
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.signature import prim_func, view
from subbyte.tvm_kernels.operators import WORD, Bits, Product

CHUNK = 8  # bits added at once
BLOCK_BYTES = 1024  # of patches


def _not_bits(op: Product[Bits, LowBitTensor]) -> str | None:
    if op.group_size:
        return "scales by group"
    return not_binary_weights(op)


def _thresholds(op: Product[Bits, LowBitTensor]) -> Thresholds | str:
    columns = op.right.matrix_shape[0]
    return thresholds(op.epilogue, op.geometry.depth, columns)


def _reason(found: Thresholds | str) -> str | None:
    return found if isinstance(found, str) else None


# ---- depthwise ----


def _no_depthwise(op: Product[Bits, LowBitTensor]) -> str | None:
    return not_depthwise(op) or _not_bits(op) or _reason(_thresholds(op))


@kernel("bit-slice-depthwise", serves=Product[Bits, LowBitTensor], prefer=12, refuses=_no_depthwise)
def depthwise(op: Product[Bits, LowBitTensor]) -> Built:
    shape, found = op.geometry.as_conv(), _thresholds(op)
    assert isinstance(found, Thresholds)
    channels, taps = shape.channels, shape.taps
    words, pixels = -(-channels // WORD), shape.pixels
    rest = (1 << (channels - 1) % WORD + 1) - 1  # the bits of the last word that are channels
    packed = pack_bits(np.ascontiguousarray(op.right.levels().reshape(channels, taps).T))
    with prim_func("depthwise") as signature:
        source = signature.input(OWN_INPUTS[0], (shape.input_pixels * words,), "uint32")
        weights = signature.constant("weight", packed.reshape(-1))
        starts = signature.constant("start", found.starts().reshape(-1))
        output = signature.output(0, (pixels, words), "uint32")
        with each_row(pixels, channels * taps) as pixel:
            image, top, left = corner(shape, pixel)
            with T.serial(0, words) as word:
                padding: Any = T.uint32((1 << WORD) - 1)
                if channels % WORD:
                    padding = T.bind(T.Select(word == words - 1, T.uint32(rest), padding))
                first = T.bind(word * (found.planes + 1))
                count = SlicedCount([starts[first + i] for i in range(found.planes)])

                def differing(ky: Any, kx: int, word: Any = word, padding: Any = padding) -> Any:
                    """Bits set where the activations under a tap differ from its weights."""
                    iy, ix = T.bind(top + ky * shape.dilation[0]), T.bind(left + kx * shape.dilation[1])
                    bits = T.alloc_buffer((1,), "uint32")
                    T.buffer_store(bits, padding, [0])
                    inside = T.And(T.And(iy >= 0, iy < shape.height), T.And(ix >= 0, ix < shape.width))
                    with T.If(inside), T.Then():
                        index = ((image * shape.height + iy) * shape.width + ix) * words + word
                        T.buffer_store(bits, source[index], [0])
                    return T.bind(bits[0] ^ weights[(ky * shape.kernel[1] + kx) * words + word])

                with T.serial(0, shape.kernel[0]) as ky:
                    for begin in range(0, shape.kernel[1], CHUNK):
                        count.add([differing(ky, kx) for kx in range(begin, min(begin + CHUNK, shape.kernel[1]))])
                T.buffer_store(output, count.highest() ^ starts[first + found.planes], [pixel, word])
    return signature.built()


# ---- products ----


def _no_product(op: Product[Bits, LowBitTensor]) -> str | None:
    if current_code_generator() != "c":
        return "for C sources only"
    conv = op.geometry.as_conv()
    if conv.groups > 1:
        return "a grouped convolution"
    if conv.channels % CHUNK:
        return f"channels are not a multiple of {CHUNK}"
    return _not_bits(op) or _reason(_thresholds(op))


@kernel("bit-slice", serves=Product[Bits, LowBitTensor], prefer=15, refuses=_no_product)
def product(op: Product[Bits, LowBitTensor]) -> Built:
    conv, found = op.geometry.as_conv(), _thresholds(op)
    assert isinstance(found, Thresholds)
    words = -(-conv.channels // WORD)
    shape = matrices_of(op.geometry, words)
    taps, chunks = conv.taps, conv.channels // CHUNK
    columns = -(-shape.columns // WORD)
    # [word of output channels][depth], a bit for each output channel.
    packed = pack_bits(np.ascontiguousarray(op.right.levels().reshape(shape.columns, -1).T)).T
    block = max(1, min(shape.rows, BLOCK_BYTES // (shape.depth * 4))) if shape.gathered else shape.rows
    # Bits beyond the last output channel: a count of differing bits must not reach them.
    rest = (1 << (shape.columns - 1) % WORD + 1) - 1
    with prim_func("product") as signature:
        stored = conv.input_pixels * words
        source = signature.input(OWN_INPUTS[0], (stored,), "uint32")
        weights = signature.constant("weight", np.ascontiguousarray(packed).reshape(-1))
        starts = signature.constant("start", found.starts().reshape(-1))
        scratch = signature.workspace(block * shape.depth * 4) if shape.gathered else source
        output = signature.output(0, (shape.rows, columns), "uint32")
        patches = view(scratch, (block * shape.depth,), "uint32") if shape.gathered else source
        bytes_of = view(scratch, (block * shape.depth * 4,) if shape.gathered else (stored * 4,), "uint8")

        def pad(element: Any) -> Any:
            """+1 in every channel; the unused bits of the last word are never read."""
            return T.uint32((1 << WORD) - 1)

        with T.parallel(0, -(-shape.rows // block)) as t:
            first = T.bind(t * block)
            here = T.bind(T.min(block, shape.rows - first))
            if shape.gathered:
                gather(conv, words, lambda pixel, e: source[pixel * words + e], patches, first, here, 0, pad)
            with T.serial(0, here) as i, T.serial(0, columns) as column:
                begin = T.bind(column * (found.planes + 1))
                count = SlicedCount([starts[begin + n] for n in range(found.planes)])
                row = T.bind((i if shape.gathered else first + i) * (shape.depth * 4))
                with T.serial(0, taps) as tap, T.serial(0, chunks) as chunk:
                    bits = T.bind(T.Cast("uint32", bytes_of[row + tap * (words * 4) + chunk]))
                    k = T.bind((column * taps + tap) * conv.channels + chunk * CHUNK)
                    spread = [T.uint32(0) - (T.shift_right(bits, T.uint32(n)) & T.uint32(1)) for n in range(CHUNK)]
                    count.add([T.bind(spread[n] ^ weights[k + n]) for n in range(CHUNK)])
                answer = count.highest() ^ starts[begin + found.planes]
                if shape.columns % WORD:
                    answer = answer & T.Select(column == columns - 1, T.uint32(rest), T.uint32((1 << WORD) - 1))
                T.buffer_store(output, answer, [first + i, column])
    return signature.built()
