"""Products of 8-bit codes with weights of eight bits or fewer: decode, then dot-product instructions. Rows for x86.

int8, int4, ternary, power of two and every other format whose levels fit 8 bits use these rows: weights stay packed
at 2, 4 or 8 bits and are decoded to bytes by a table (panels.py). Measured: benchmarks/kernels.py --only dot
"""

from __future__ import annotations

from functools import partial

import numpy as np

from subbyte.errors import FormatError
from subbyte.formats import LowBitTensor
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.x86 import amx
from subbyte.tvm_kernels.kernels.x86.amx_shape import not_worth
from subbyte.tvm_kernels.kernels.x86.instructions import (
    BYTES_256,
    BYTES_512,
    INT16_256,
    INT16_512,
    VNNI_256,
    VNNI_512,
    Instruction,
)
from subbyte.tvm_kernels.kernels.x86.operands import Operands, depth_groups, epilogue_with_scale, padded_channels
from subbyte.tvm_kernels.kernels.x86.register_tile import vector_row
from subbyte.tvm_kernels.kernels.x86.tiling import window_of
from subbyte.tvm_kernels.operators import Codes, Product

WORTH_TILES = 0.25  # of their products: below it, vectors are faster


def refusal(op: Product[Codes, LowBitTensor]) -> str | None:
    """Why these rows do not support this product."""
    levels = op.right.format.integer_levels.values
    zero = op.right.zero_point
    low, high = int(levels.min()), int(levels.max())
    if zero is not None:
        low, high = low - int(zero.max()), high - int(zero.min())
    if low < -128 or high > 127:
        return f"weight levels {low}..{high} do not fit 8 bits"
    try:
        check_accumulator(op.right.depth, op.left.largest, max(-low, high))
    except FormatError as error:
        return str(error)
    conv = op.geometry.as_conv()
    if conv.is_depthwise:
        return "a depthwise convolution has no sums over channels"
    size = depth_groups(op)
    if size:
        if size % 4:
            return f"weight groups of {size} are not a multiple of 4"
        depth = conv.channels // conv.groups
        if conv.kernel != (1, 1) and (depth % size or depth % 4):
            return f"weight groups of {size} do not divide the {depth} channels of a window position"
    return None


def operands_of(op: Product[Codes, LowBitTensor], instruction: Instruction) -> Operands:
    """The operands of a product of codes."""
    window = window_of(op.geometry)
    depth = window.channels // window.groups
    shape = (window.out_channels, *window.kernel, depth)
    size = depth_groups(op)
    start = (-op.left.zero_point * op.right.sums(size or op.right.depth).T).astype(np.int32)
    scale = None
    if size:
        scale = padded_channels(np.ascontiguousarray(op.right.scale.T), instruction)
    fmt, table, bits = op.right.format, (), 8
    if fmt.code_bits > 4 or op.right.zero_point is not None:
        codes = op.right.compact_integers.astype(np.int8).view(np.uint8).reshape(shape)
    else:  # at the format's own width, widened to 2 or 4 bits
        codes, bits = op.right.payload.codes.reshape(shape), 2 if fmt.code_bits <= 2 else 4
        table = tuple(fmt.integer_levels.by_code.tolist())
    return Operands(
        window=window,
        codes=codes,
        bits=bits,
        table=table,
        fill=bytes([op.left.zero_point]) * window.channels,
        start=padded_channels(start, instruction),
        epilogue=epilogue_with_scale(op),
        scale=scale,
        group_elements=size,
    )


def _bytes_saturate(op: Product[Codes, LowBitTensor]) -> bool:
    """Whether the sum of two products of bytes may not fit 16 bits."""
    return 2 * 255 * op.right.largest > 32767


def _refusal_of_tiles(op: Product[Codes, LowBitTensor]) -> str | None:
    """Why AMX's tile registers do not support this product, or would be slower than vectors."""
    reason = refusal(op)
    if reason is not None:
        return reason
    if depth_groups(op):
        return "scales by group inside the sum"
    return not_worth(operands_of(op, VNNI_512), WORTH_TILES)


@kernel("dot-amx", serves=Product[Codes, LowBitTensor], needs=amx.FEATURES, prefer=110, refuses=_refusal_of_tiles)
def dot_amx(op: Product[Codes, LowBitTensor]) -> Built:
    """tdpbusd: 16 x 64 x 16 products and their sums in one instruction."""
    return amx.AmxProduct(op, VNNI_512, operands_of(op, VNNI_512)).build()


_row = partial(vector_row, Product[Codes, LowBitTensor], refusal, operands_of)

# vpdpbusd: four products and their sum in one instruction.
_row("dot-avx512-vnni", {"avx512vnni", "avx512bw"}, 100, lambda op: VNNI_512)
_row("dot-avx-vnni", {"avxvnni", "avx2"}, 80, lambda op: VNNI_256)

# vpmaddubsw where it cannot saturate, else 16-bit operands and vpmaddwd.
_row("dot-avx512", {"avx512bw"}, 90, lambda op: INT16_512 if _bytes_saturate(op) else BYTES_512)
_row("dot-avx2", {"avx2"}, 70, lambda op: INT16_256 if _bytes_saturate(op) else BYTES_256)
