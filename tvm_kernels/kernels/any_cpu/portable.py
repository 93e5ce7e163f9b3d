"""Integer products for any CPU and any C compiler: rows for every format, with weights packed at their own bits.

portable      codes or bits x any format: weights are decoded by panel, then multiplied.
popcount      bits x binary: exclusive or, then population count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.errors import FormatError
from subbyte.formats import BINARY_LEVELS, LowBitTensor
from subbyte.formats.reference import check_accumulator, pack_bits
from subbyte.tvm_kernels.kernels.any_cpu.im2col import Matrices, matrices_of
from subbyte.tvm_kernels.kernels.any_cpu.portable_product import Arithmetic, PanelSource, build
from subbyte.tvm_kernels.kernels.any_cpu.weight_panels import WeightPanels, declare_codes, panel_order, weight_of
from subbyte.tvm_kernels.kernels.code_generator import cpu_multiplies, current_code_generator
from subbyte.tvm_kernels.kernels.registry import Built, kernel
from subbyte.tvm_kernels.kernels.tir.signature import Signature
from subbyte.tvm_kernels.kernels.tir.vectors import splat, vector_type
from subbyte.tvm_kernels.operators import WORD, Bits, Codes, Conv2d, Product


def _integer(value: Any, lanes: int) -> Any:
    return T.Cast(vector_type("int32", lanes), value)


def _multiply(total: Any, left: Any, right: Any, lanes: int) -> Any:
    return total + _integer(left, lanes) * _integer(right, lanes)


# ---- portable ----


def bytes_too_many(op: Product[Codes | Bits, LowBitTensor]) -> str | None:
    """Why sums in int32 could overflow, or None. Bytes, up to 255, are summed; zero points are applied at the start."""
    zero_point = op.right.zero_point
    shifted = 0 if zero_point is None else int(np.abs(zero_point).max(initial=0))
    try:
        check_accumulator(op.geometry.depth, 255, max(1, int(op.right.format.largest) + shifted))
    except FormatError as error:
        return str(error)
    return None


def _decoded(weight: WeightPanels, signature: Signature) -> PanelSource:
    if weight.op.right.format.code_bits == 8 and weight.dtype == "int8":
        return PanelSource("int8", constant=signature.constant("weight", panel_order(weight.levels())))
    decode, dtype = declare_codes(weight, signature)
    return PanelSource(dtype, prepare=decode)


@kernel("portable", serves=Product[Codes | Bits, LowBitTensor], refuses=bytes_too_many)
def portable(op: Product[Codes | Bits, LowBitTensor]) -> Built:
    conv = op.geometry.as_conv()
    shape = matrices_of(op.geometry)
    weight = weight_of(op, shape.groups)
    if isinstance(op.left, Bits):
        return _unpacked(op, conv, shape, weight)
    zero_point = op.left.zero_point
    how = Arithmetic(
        geometry=conv,
        matrices=shape,
        elements=conv.channels,
        left_dtype="uint8",
        load=lambda source, pixel, element: source[pixel * conv.channels + element],
        linear=True,
        pad=lambda element: T.uint8(zero_point),
        zero_point=zero_point,
        panels=lambda signature: _decoded(weight, signature),
        step=_multiply,
        lefts=8,
    )
    return build(op, weight, how, (conv.input_pixels * conv.channels, "uint8"))


def _unpacked(op: Product[Codes | Bits, LowBitTensor], conv: Conv2d, shape: Matrices, weight: WeightPanels) -> Built:
    """Bits x levels: patches of bytes 0 and 2 with zero point 1."""
    words = -(-conv.channels // WORD)

    def load(source: Any, pixel: Any, element: Any) -> Any:
        word = source[pixel * words + element // WORD]
        bit = T.shift_right(word, T.Cast("uint32", element % WORD)) & T.uint32(1)
        return T.Cast("uint8", T.shift_left(bit, T.uint32(1)))

    how = Arithmetic(
        geometry=conv,
        matrices=Matrices(shape.rows, shape.depth, shape.columns, shape.groups, True),
        elements=conv.channels,
        left_dtype="uint8",
        load=load,
        linear=False,
        pad=lambda element: T.uint8(2),
        zero_point=1,
        panels=lambda signature: _decoded(weight, signature),
        step=_multiply,
        lefts=8,
    )
    return build(op, weight, how, (conv.input_pixels * words, "uint32"))


# ---- popcount ----


def not_binary_weights(op: Product[Codes | Bits, LowBitTensor]) -> str | None:
    """Why weights are not binary, or None."""
    if op.right.format.levels != BINARY_LEVELS or op.right.zero_point is not None:
        return f"weights are {op.right.format.name}, not binary"
    return None


def _not_binary(op: Product[Bits, LowBitTensor]) -> str | None:
    if not_binary_weights(op):
        return not_binary_weights(op)
    if op.group_size:
        return "scales by group"
    if op.geometry.as_conv().groups > 1:
        return "a grouped convolution, whose groups of channels are not whole words"
    return None


def count_bits(value: Any, lanes: int) -> Any:
    """Population count of each uint32, int32. C has no operator for it, and the CPUs of C sources no instruction."""
    if current_code_generator() == "llvm":
        return _integer(T.popcount(value), lanes)

    def number(n: int) -> Any:
        return splat(T.uint32(n), lanes)

    value = T.bind(value - (T.shift_right(value, number(1)) & number(0x55555555)))
    value = T.bind((value & number(0x33333333)) + (T.shift_right(value, number(2)) & number(0x33333333)))
    value = (value + T.shift_right(value, number(4))) & number(0x0F0F0F0F)
    if cpu_multiplies():
        return _integer(T.shift_right(value * number(0x01010101), number(24)), lanes)
    value = T.bind(value + T.shift_right(value, number(8)))
    return _integer((value + T.shift_right(value, number(16))) & number(0x3F), lanes)


@kernel("portable-popcount", serves=Product[Bits, LowBitTensor], prefer=10, refuses=_not_binary)
def popcount(op: Product[Bits, LowBitTensor]) -> Built:
    conv = op.geometry.as_conv()
    words = -(-conv.channels // WORD)
    depth = op.geometry.depth
    shape = matrices_of(op.geometry, words)
    weight = weight_of(op, 1)
    levels = weight.levels().reshape(-1, depth // conv.channels, conv.channels)
    packed = pack_bits(levels).reshape(1, levels.shape[0], -1)
    last = (1 << (conv.channels - 1) % WORD + 1) - 1

    def pad(element: Any) -> Any:
        """+1 in every channel; the unused bits of the last word are 0, as in the weights."""
        if last == (1 << WORD) - 1:
            return T.uint32(last)
        return T.Select(element == words - 1, T.uint32(last), T.uint32((1 << WORD) - 1))

    how = Arithmetic(
        geometry=conv,
        matrices=shape,
        elements=words,
        left_dtype="uint32",
        load=lambda source, pixel, element: source[pixel * words + element],
        linear=True,
        pad=pad,
        zero_point=0,
        panels=lambda signature: PanelSource("uint32", constant=signature.constant("weight", panel_order(packed))),
        step=lambda total, left, right, lanes: total + count_bits(left ^ right, lanes),
        finish=lambda total, lanes: splat(IntImm("int32", depth), lanes) - total * splat(IntImm("int32", 2), lanes),
    )
    return build(op, weight, how, (conv.input_pixels * words, "uint32"))
