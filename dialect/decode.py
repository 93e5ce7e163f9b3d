"""Decode<Format> and Dequantize<Format> of every registered format: packed codes to levels, or to values.

Both are generated from the table of the format: unpack codes, look up levels, multiply by one scale per group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx

from subbyte.dialect.function import (
    Array,
    Call,
    Dequantized,
    Exactness,
    Function,
    PackedWeights,
    Shape,
    checked,
    family,
    function_of,
)
from subbyte.errors import FormatError
from subbyte.files import limits
from subbyte.formats import Format, LowBitTensor, PerChannel, PerGroup, PerTensor, all_formats, unpack

# ---- parts of bodies: packed bytes [rows, bytes] to levels [rows, depth] ----

_DEPTH = """
    first = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    tail = Slice(shape, one, end, first)
    factors = Concat <axis = 0> (one, tail)
    depth = ReduceProd <keepdims = 1> (factors)
    bytes = Unsqueeze(packed, last)
"""

# Codes of 1, 2, 4 or 8 bits: none crosses a byte boundary.
_CODES_ALIGNED = """
    last = Constant <value = int64[1] {{-1}}> ()
    {depth}
    shifts = Constant <value = uint8[{per_byte}] {{{shifts}}}> ()
    mask = Constant <value = uint8 {{{mask}}}> ()
    shifted = BitShift <direction = "RIGHT"> (bytes, shifts)
    masked = BitwiseAnd(shifted, mask)
    stream = Flatten <axis = 1> (masked)
    codes = Slice(stream, first, depth, one)
    index = Cast <to = 6> (codes)
"""

# Codes of other widths cross byte boundaries: unpack single bits, then sum them by their powers of two.
_CODES_ACROSS = """
    last = Constant <value = int64[1] {{-1}}> ()
    {depth}
    shifts = Constant <value = uint8[8] {{0, 1, 2, 3, 4, 5, 6, 7}}> ()
    mask = Constant <value = uint8 {{1}}> ()
    width = Constant <value = int64[1] {{{bits}}}> ()
    powers = Constant <value = float[{bits}] {{{powers}}}> ()
    shifted = BitShift <direction = "RIGHT"> (bytes, shifts)
    masked = BitwiseAnd(shifted, mask)
    stream = Flatten <axis = 1> (masked)
    used = Mul(depth, width)
    payload = Slice(stream, first, used, one)
    rows = Slice(shape, first, one, first)
    by_code = Concat <axis = 0> (rows, depth, width)
    grouped = Reshape <allowzero = 1> (payload, by_code)
    bits = Cast <to = 1> (grouped)
    placed = Mul(bits, powers)
    codes = ReduceSum <keepdims = 0> (placed, last)
    index = Cast <to = 6> (codes)
"""

# A code without a level becomes NaN, so that a damaged payload is detected.
_LEVELS = """
    table = Constant <value = float[{count}] {{{table}}}> ()
    matrix = Gather <axis = 0> (table, index)
"""

_SCALED = """
    group = Unsqueeze(group_size, first)
    copies = Concat <axis = 0> (one, one, group)
    column = Unsqueeze(scale, last)
    spread = Expand(column, copies)
    scales = Flatten <axis = 1> (spread)
    fitting = Slice(scales, first, depth, one)
    scaled = Mul(matrix, fitting)
"""


def _numbers(values: Iterable[float | None]) -> str:
    return ", ".join("nan" if value is None else str(value) for value in values)


def _levels_text(fmt: Format) -> str:
    bits = fmt.code_bits
    if 8 % bits == 0:
        codes = _CODES_ALIGNED.format(
            depth=_DEPTH, per_byte=8 // bits, shifts=_numbers(range(0, 8, bits)), mask=(1 << bits) - 1
        )
    else:
        codes = _CODES_ACROSS.format(depth=_DEPTH, bits=bits, powers=_numbers(1 << i for i in range(bits)))
    return codes + _LEVELS.format(count=len(fmt.table), table=_numbers(fmt.table))


# ---- the functions ----


@cache
def decoder(fmt: Format) -> Function:
    """Decode<Format>: from packed codes, uint8 [rows, bytes], and a shape to levels, float32 of that shape."""
    text = f"{fmt.decoder} (packed, shape) => (levels) {{ {_levels_text(fmt)}"
    text += "levels = Reshape <allowzero = 1> (matrix, shape) }"

    def reference(packed: Array, shape: Array) -> tuple[Array, ...]:
        return (_levels(fmt, packed, shape),)

    def example(random: np.random.Generator) -> tuple[Array, ...]:
        tensor = _tensor(fmt, random)
        return tensor.packed, np.array(tensor.shape)

    kind = "Integer-valued levels" if fmt.levels.integer else "Levels"
    summary = f"{kind} of packed {fmt.name} codes: {fmt.summary}."
    return _weights(fmt.decoder, summary, text, PackedWeights(fmt, by_group=False), reference, example)


@cache
def dequantizer(fmt: Format) -> Function:
    """Dequantize<Format>: the decoder, times scale, float32 [rows, groups], one per `group_size` elements of a row."""
    text = f"{fmt.dequantizer} (packed, shape, scale, group_size) => (values) {{ {_levels_text(fmt)} {_SCALED}"
    text += "values = Reshape <allowzero = 1> (scaled, shape) }"

    def reference(packed: Array, shape: Array, scale: Array, group_size: Array) -> tuple[Array, ...]:
        levels = _levels(fmt, packed, shape)
        scales = np.repeat(scale, int(group_size), axis=1)[:, : levels[:1].size]
        return (levels * scales.reshape(levels.shape),)

    def example(random: np.random.Generator) -> tuple[Array, ...]:
        tensor = _tensor(fmt, random, group_size := int(random.integers(2, 40)))
        return tensor.packed, np.array(tensor.shape), tensor.scale, np.array(group_size)

    summary = f"Levels of packed {fmt.name} codes times one scale for each group_size of a row."
    return _weights(fmt.dequantizer, summary, text, PackedWeights(fmt, by_group=True), reference, example)


@family
def of_formats() -> Iterator[Function]:
    """A decoder and a dequantizer for every registered format."""
    for fmt in all_formats():
        yield decoder(fmt)
        yield dequantizer(fmt)


def weights_of(node: onnx.NodeProto) -> PackedWeights | None:
    """The role of a call of a decoder or dequantizer; None for any other node."""
    function = function_of(node)
    return function.role if function is not None and isinstance(function.role, PackedWeights) else None


def low_bit(weights: PackedWeights, inputs: Sequence[Array]) -> LowBitTensor:
    """What a call with these inputs unpacks: levels with scale 1, or with a scale for each group.

    Raises FormatError where payload, shape and scales do not fit each other.
    """
    packed, shape = inputs[0], tuple(int(size) for size in inputs[1].reshape(-1))
    if not shape or min(shape) < 1 or math.prod(shape) > limits.ELEMENTS:
        raise FormatError(f"a payload of {list(packed.shape)} bytes does not match a weight of shape {list(shape)}")
    if not weights.by_group:
        return LowBitTensor.from_packed(weights.format, shape, packed, 1.0, PerTensor())
    groups = PerGroup(int(inputs[3].reshape(-1)[0]))
    return LowBitTensor.from_packed(weights.format, shape, packed, inputs[2], groups)


def _weights(name: str, summary: str, body: str, role: PackedWeights, reference: Any, example: Any) -> Function:
    return checked(
        Function(
            name=name,
            version=1,
            summary=summary,
            body=body,
            role=role,
            shapes=_stated_shape,
            reference=reference,
            exactness=Exactness.BIT_EXACT,
            in_float=Dequantized(),
            finite=True,
            macs=lambda call: 0,
            energy={},  # constants, unpacked when a file is compiled
            example=example,
        )
    )


def _stated_shape(call: Call) -> tuple[Shape, ...]:
    if call.constants[1] is None:
        raise ValueError("its shape is not a constant")
    return (tuple(int(size) for size in call.constants[1].reshape(-1)),)


def _levels(fmt: Format, packed: Array, shape: Array) -> Array:
    """Levels, float32 of `shape`; NaN for a code without a level."""
    codes = unpack(packed, fmt.code_bits, int(np.prod(shape[1:])))
    return np.array(fmt.table, np.float32)[codes].reshape(tuple(shape))


def _tensor(fmt: Format, random: np.random.Generator, group_size: int | None = None) -> LowBitTensor:
    shape = (3, int(random.integers(1, 9)), 3, int(random.integers(1, 4)))
    granularity = PerChannel() if group_size is None else PerGroup(group_size)
    scale = random.uniform(0.1, 2, granularity.scale_shape((3, int(np.prod(shape[1:]))))).astype(np.float32)
    return LowBitTensor.from_levels(fmt, random.choice(fmt.levels.values, size=shape), scale, granularity)
