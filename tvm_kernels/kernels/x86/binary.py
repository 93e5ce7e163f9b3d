"""Products of binary values: exclusive or, population count, add; 32 values in each lane. Rows for x86.

dot = depth - 2 * popcount(a xor w). Unused bits are 0 in both operands and add nothing; padding is +1: words of ones up
to the number of channels. Lanes stay 32 bits wide, so that the input of the epilogue is int32 sums.
Rastegari et al., "XNOR-Net", 2016. Measured: benchmarks/kernels.py --only binary
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import BINARY_LEVELS, LowBitTensor
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.tir.vectors import lanes_of, splat
from subbyte.tvm_kernels.kernels.x86 import amx
from subbyte.tvm_kernels.kernels.x86.amx_shape import not_worth
from subbyte.tvm_kernels.kernels.x86.instructions import POPCOUNT_256, POPCOUNT_512, VNNI_512, Instruction
from subbyte.tvm_kernels.kernels.x86.operands import Operands, depth_groups, epilogue_with_scale, padded_channels
from subbyte.tvm_kernels.kernels.x86.register_tile import vector_row
from subbyte.tvm_kernels.kernels.x86.tiling import window_of
from subbyte.tvm_kernels.operators import WORD, Binarized, Bits, Epilogue, Product, Scale

WORTH_UNPACKING = 128  # positions: the 49 of a 7x7 image do not repay it, the 196 of 14x14 do
WORTH_TILES = 0.5  # of their products full: below it, population counts are faster


def refusal(op: Product[Bits | Binarized, LowBitTensor]) -> str | None:
    """Why exclusive or and popcount do not support this product."""
    if op.right.format.levels != BINARY_LEVELS or op.right.zero_point is not None:
        return f"weights are {op.right.format.name}, not binary"
    if depth_groups(op):
        return "scales by group inside the sum"
    conv = op.geometry.as_conv()
    if conv.groups > 1:
        depth = conv.channels // conv.groups
        if depth % WORD:
            return f"groups of {depth} channels are not whole words of {WORD}"
    return None


def operands_of(op: Product[Bits | Binarized, LowBitTensor], instruction: Instruction) -> Operands:
    """The operands of a binary product, as bytes of their words."""
    window = window_of(op.geometry)
    depth = window.channels // window.groups
    words = -(-depth // WORD)
    levels = op.right.integers().reshape(window.out_channels, *window.kernel, depth)
    packed = pack_bits(levels).astype("<u4").view(np.uint8).reshape(window.out_channels, *window.kernel, 4 * words)
    fill = pack_bits(np.ones((window.groups, depth), np.int32)).astype("<u4").tobytes()
    total = window.taps * depth
    epilogue = epilogue_with_scale(op)
    folded = _folded(epilogue) if total % 2 == 0 else None
    first = total // 2 if folded else 0
    start = np.full((1, window.out_channels), first, np.int32)

    def finish(negative_count: Any) -> Any:
        lanes = lanes_of(negative_count)
        return splat(IntImm("int32", total), lanes) + T.shift_left(negative_count, splat(IntImm("int32", 1), lanes))

    return Operands(
        window=replace(window, channels=4 * words * window.groups),
        codes=packed,
        bits=8,
        fill=fill,
        start=padded_channels(start, instruction),
        finish=None if folded else finish,
        epilogue=folded or epilogue,
    )


def _folded(epilogue: Epilogue) -> Epilogue | None:
    """The epilogue for sums that are half the product, where its first step is a scale that takes the factor 2 exactly.

    Sums then start at depth / 2 and need no operation after the loop. Multiplying by a power of two is exact, so the
    scaled value is the same float32.
    """
    if not epilogue.steps or not isinstance(epilogue.steps[0], Scale):
        return None
    values = np.asarray(epilogue.steps[0].values, np.float32)
    largest = np.abs(values).max()
    smallest = np.abs(values[values != 0]).min(initial=1.0)
    if not (largest < 1e30 and smallest > 1e-30):
        return None
    return replace(epilogue, steps=(Scale(values * np.float32(2)), *epilogue.steps[1:]))


def bytes_of(op: Product[Bits | Binarized, LowBitTensor]) -> Operands:
    """The operands of a binary product as bytes: activations 0 and 1, weights -2 and 2, sums from -sum(w)."""
    window = window_of(op.geometry)
    depth = window.channels // window.groups
    start = (-op.right.sums(op.right.depth).T).astype(np.int32)
    words = operands_of(op, VNNI_512)
    codes = (op.right.integers() > 0).astype(np.uint8).reshape(window.out_channels, *window.kernel, depth)
    return Operands(
        window=words.window,
        codes=codes,
        bits=1,
        table=(-2, 2),
        fill=words.fill,
        start=padded_channels(start, VNNI_512),
        epilogue=epilogue_with_scale(op),
        unpacked=8,
    )


def _refusal_of_tiles(op: Product[Bits | Binarized, LowBitTensor]) -> str | None:
    """Why AMX's tile registers do not support this product, or would be slower than population counts."""
    rows = window_of(op.geometry).pixels
    if rows < WORTH_UNPACKING:
        return f"{rows} positions are too few to unpack the weights for"
    return refusal(op) or not_worth(bytes_of(op), WORTH_TILES)


@kernel("binary-amx", serves=Product[Bits, LowBitTensor], needs=amx.FEATURES, prefer=110, refuses=_refusal_of_tiles)
def binary_amx(op: Product[Bits, LowBitTensor]) -> Built:
    """Bits unpacked to bytes, tile by tile, and tdpbusd."""
    return amx.AmxProduct(op, VNNI_512, bytes_of(op)).build()


def _refusal_to_binarize(op: Product[Binarized, LowBitTensor]) -> str | None:
    """Why activations cannot be binarized while the tiles of the input are copied, or would not all be stored."""
    channels = op.left.quantizer.storage.channels
    if channels % WORD:
        return f"{channels} channels are not whole words of {WORD}"
    if op.geometry.as_conv().stride != (1, 1):
        return "a stride skips activations, whose bits would not be stored"
    return _refusal_of_tiles(op)


@kernel(
    "binarize-amx",
    serves=Product[Binarized, LowBitTensor],
    needs=amx.FEATURES,
    prefer=110,
    refuses=_refusal_to_binarize,
)
def binarize_amx(op: Product[Binarized, LowBitTensor]) -> Built:
    """binary-amx on float32, which is binarized to bytes while it is copied."""
    return amx.AmxProduct(op, VNNI_512, bytes_of(op)).build()


_row = partial(vector_row, Product[Bits, LowBitTensor], refusal, operands_of)

# vpopcntd; without it population counts by table look-ups.
_row("binary-avx512-vpopcnt", {"avx512vpopcntdq", "avx512bw"}, 100, lambda op: POPCOUNT_512)
_row("binary-avx2", {"avx2"}, 70, lambda op: POPCOUNT_256)
