"""Integer arithmetic that is undefined in C, and comparisons that LLVM does not support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax

from subbyte.tvm_kernels.relax_converters.converter import converter


@converter("", "Cast")
def cast(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Floats below 2^63 are cast to uint64 through int64, so that negative ones wrap as for other types; else TVM's."""
    x = inputs[0]
    if attributes["to"] != onnx.TensorProto.UINT64 or "float" not in str(x.ty.dtype):
        return None
    whole = relax.op.astype(relax.op.astype(x, "int64"), "uint64")
    return relax.op.where(relax.op.less(x, relax.const(2.0**63, str(x.ty.dtype))), whole, relax.op.astype(x, "uint64"))


def _bounds(dtype: str) -> tuple[bool, int]:
    """Whether an integer type is signed, and its number of bits."""
    kind = np.dtype(dtype)
    return kind.kind == "i", 8 * kind.itemsize


@converter("", "BitShift")
def bit_shift(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """A shift by y; by a negative y or one of at least the width the result is 0, or -1 for x < 0 >> y."""
    x, y = inputs
    dtype = str(x.ty.dtype)
    signed, bits = _bounds(dtype)
    zero = relax.const(0, dtype)
    inside = relax.op.less(y, relax.const(bits, dtype))
    if signed:
        inside = relax.op.logical_and(inside, relax.op.greater_equal(y, zero))
    amount = relax.op.where(inside, y, zero)
    if attributes["direction"] == b"LEFT":
        return relax.op.where(inside, relax.op.left_shift(x, amount), zero)
    fill = relax.op.where(relax.op.less(x, zero), relax.const(-1, dtype), zero) if signed else zero
    return relax.op.where(inside, relax.op.right_shift(x, amount), fill)


def _divided(x: Any, y: Any, divide: Callable[[Any, Any], Any], by_minus_one: Any) -> Any:
    """`divide(x, y)` of integers without a division by 0 or by -1, whose quotient may overflow."""
    dtype = str(x.ty.dtype)
    signed, _ = _bounds(dtype)
    zero, minus_one = relax.const(0, dtype), relax.const(-1 if signed else 0, dtype)
    by_zero, by_minus = relax.op.equal(y, zero), relax.op.equal(y, minus_one)
    # By sums, as TVM would evaluate both branches of a Select. Divisors 0 and -1 become 1.
    divisor = relax.op.add(y, relax.op.astype(by_zero, dtype))
    if not signed:
        return relax.op.where(by_zero, zero, divide(x, divisor))
    twice = relax.op.multiply(relax.op.astype(by_minus, dtype), relax.const(2, dtype))
    result = relax.op.where(by_minus, by_minus_one, divide(x, relax.op.add(divisor, twice)))
    return relax.op.where(by_zero, zero, result)


@converter("", "Div")
def div(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x / y; of integers the quotient without its fraction, and 0 where y is 0, as NumPy has it."""
    x, y = inputs
    if "float" in str(x.ty.dtype):
        return relax.op.divide(x, y)
    return _divided(x, y, relax.op.divide, relax.op.subtract(relax.const(0, str(x.ty.dtype)), x))


def _floor_mod(x: Any, y: Any) -> Any:
    """The remainder with the sign of y, of integers; TVM's own fails for int8 in vectors."""
    rest, zero = relax.op.mod(x, y), relax.const(0, str(x.ty.dtype))
    other_sign = relax.op.logical_xor(relax.op.less(rest, zero), relax.op.less(y, zero))
    corrected = relax.op.logical_and(other_sign, relax.op.not_equal(rest, zero))
    return relax.op.where(corrected, relax.op.add(rest, y), rest)


@converter("", "Mod")
def mod(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The remainder with the sign of y, or with `fmod` that of x; of integers 0 where y is 0, as NumPy has it."""
    x, y = inputs
    dtype = str(x.ty.dtype)
    zero = relax.const(0, dtype)
    of_x = bool(attributes.get("fmod", 0))
    if "float" not in dtype:
        return _divided(x, y, relax.op.mod if of_x else _floor_mod, zero)
    rest = relax.op.mod(x, y)
    if of_x:
        return rest
    # x - floor(x / y) * y would round three times, and is NaN for an infinite y.
    negative = relax.op.less(y, zero)
    other_sign = relax.op.logical_xor(relax.op.less(rest, zero), negative)
    remainder = relax.op.where(other_sign, relax.op.add(rest, y), rest)
    exact = relax.op.where(negative, relax.const(-0.0, dtype), zero)
    return relax.op.where(relax.op.equal(rest, zero), exact, remainder)


@converter("", "Equal")
def equal(builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """x == y; LLVM does not support TVM's comparison of bool."""
    x, y = inputs
    if str(x.ty.dtype) == "bool":
        return relax.op.logical_not(relax.op.logical_xor(x, y))
    return relax.op.equal(x, y)
