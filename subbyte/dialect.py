"""The dialect: what ONNX cannot say, written as functions of domain `subbyte` in standard operators.

The bodies are ONNX text (`onnx.parser`), so a reader sees what an engine runs. Decoders are generated from
`subbyte.formats`: a format that is registered there has `Decode<Format>` and `Dequantize<Format>` here without another
line. To add any other function, add its text to `_TEXTS`, and a row to docs/onnx-dialect.md. To change a body, put the
one that it replaces into `_EARLIER`: files that hold it are read for ever (subbyte/function_calls.py compares).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import onnx
import onnx.parser

from subbyte.errors import UnknownNameError
from subbyte.formats import Format, all_formats

DOMAIN = "subbyte"
DOMAIN_VERSION = 1
OPSET = 21
IR_VERSION = 10

_HEADER = '<domain: "subbyte", opset_import: ["" : 21], doc_string: "{doc}">\n'

# ---- activation quantizers: formats/reference.py in ONNX ----

_TEXTS = {
    "Quantize": (
        "Integer-valued codes: clip(rint(x * inverse_step), low, high); ties to even.",
        """Quantize (x, inverse_step, low, high) => (codes) {
            scaled = Mul(x, inverse_step)
            rounded = Round(scaled)
            codes = Clip(rounded, low, high)
        }""",
    ),
    "QuantizePerToken": (
        "Codes in -128..127 and step of each vector along the last axis (BitNet b1.58, 2024).",
        """QuantizePerToken (x) => (codes, step) {
            last = Constant <value = int64[1] {-1}> ()
            floor = Constant <value = float {1e-5}> ()
            full = Constant <value = float {128}> ()
            inverse_full = Constant <value = float {0.0078125}> ()
            low = Constant <value = float {-128}> ()
            high = Constant <value = float {127}> ()
            magnitude = Abs(x)
            peak = ReduceMax <keepdims = 1> (magnitude, last)
            largest = Max(peak, floor)
            inverse_step = Div(full, largest)
            scaled = Mul(x, inverse_step)
            rounded = Round(scaled)
            codes = Clip(rounded, low, high)
            step = Mul(largest, inverse_full)
        }""",
    ),
    "Binarize": (
        "+1 where x >= threshold, else -1; the sign of 0 is +1.",
        """Binarize (x, threshold) => (signs) {
            plus = Constant <value = float {1}> ()
            minus = Constant <value = float {-1}> ()
            high = GreaterOrEqual(x, threshold)
            signs = Where(high, plus, minus)
        }""",
    ),
}

# (name, version of the domain) -> bodies that files of earlier releases hold, beside today's
_EARLIER: dict[tuple[str, int], tuple[tuple[str, str], ...]] = {}

# ---- decoders: packed bytes [rows, bytes] to `levels` [rows, depth], in three steps ----

_DEPTH = """
    first = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    end = Constant <value = int64[1] {9223372036854775807}> ()
    tail = Slice(shape, one, end, first)
    factors = Concat <axis = 0> (one, tail)
    depth = ReduceProd <keepdims = 1> (factors)
    bytes = Unsqueeze(packed, last)
"""

# 1, 2, 4 or 8 bits: a byte holds a whole number of codes.
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

# Any other width: codes cross bytes, so the stream is taken apart bit by bit and put together again.
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

# A code that stands for no level becomes NaN: a damaged payload must not look like a weight.
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


def decoders() -> dict[str, Format]:
    """Decoder name -> the format it decodes, for every registered format."""
    return {fmt.decoder: fmt for fmt in all_formats()}


def dequantizers() -> dict[str, Format]:
    """Dequantizer name -> the format it decodes, for every registered format."""
    return {fmt.dequantizer: fmt for fmt in all_formats()}


def weight_format(node: onnx.NodeProto) -> Format | None:
    """The format of the weights that a `Decode*` or `Dequantize*` call unpacks; None for any other node."""
    if node.domain != DOMAIN:
        return None
    return decoders().get(node.op_type) or dequantizers().get(node.op_type)


def is_grouped(node: onnx.NodeProto) -> bool:
    """Whether a node is a `Dequantize*` call."""
    return node.domain == DOMAIN and node.op_type.startswith("Dequantize")


def _numbers(values: Iterable[int | None]) -> str:
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


def _decoder(fmt: Format) -> onnx.FunctionProto:
    text = f"{fmt.decoder} (packed, shape) => (levels) {{ {_levels_text(fmt)}"
    text += "levels = Reshape <allowzero = 1> (matrix, shape) }"
    return _parse(f"Integer-valued levels of packed {fmt.name} codes: {fmt.summary}.", text)


def _dequantizer(fmt: Format) -> onnx.FunctionProto:
    text = f"{fmt.dequantizer} (packed, shape, scale, group_size) => (values) {{ {_levels_text(fmt)} {_SCALED}"
    text += "values = Reshape <allowzero = 1> (scaled, shape) }"
    return _parse(f"Levels of packed {fmt.name} codes times one scale for each group_size of a row.", text)


def _parse(doc: str, text: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(_HEADER.format(doc=doc) + text)


@cache
def function(name: str) -> onnx.FunctionProto:
    """The function of that name; raises UnknownNameError with the nearest one. Do not change what is returned."""
    if name in _TEXTS:
        return _parse(*_TEXTS[name])
    if name in decoders():
        return _decoder(decoders()[name])
    if name in dequantizers():
        return _dequantizer(dequantizers()[name])
    raise UnknownNameError("function of domain subbyte", name, function_names())


def function_names() -> list[str]:
    """All functions of the library."""
    return [*_TEXTS, *decoders(), *dequantizers()]


def bodies(name: str, version: int) -> tuple[onnx.FunctionProto, ...]:
    """Every body that a function has had in a version of the domain, today's first; none where we know of none."""
    today = (function(name),) if version == DOMAIN_VERSION and name in function_names() else ()
    return (*today, *(_parse(*text) for text in _EARLIER.get((name, version), ())))
