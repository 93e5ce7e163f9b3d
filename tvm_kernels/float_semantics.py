"""Functions that TVM made, with floats as ONNX has them, which TVM simplifies as if none were NaN or infinite.

(x + y) - y, x - x        TVM makes x and 0 of them
x == x, x != x and so on  TVM makes true and false of them
max(x, y), min(x, y)      are one of the two where one is NaN: ONNX's are NaN
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx

from subbyte.tvm_kernels.kernels.tir.extremes import at_least, at_most, larger, opaque_bits, smaller

FLOATS = ("float32", "float64")
COMPARISONS = (tirx.EQ, tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def as_in_onnx(function: Any) -> Any:
    """A PrimFunc of TVM's legaliser, before it is simplified or scheduled, that computes floats as ONNX does."""
    rows = (
        (tirx.Sub, _difference),
        *((kind, _comparison(kind)) for kind in COMPARISONS),
        (tirx.Max, _extreme(at_least, larger)),
        (tirx.Min, _extreme(at_most, smaller)),
    )
    return tvm_ffi.structural_map(function, rows)


def _difference(node: Any) -> Any:
    if str(node.ty.dtype) not in FLOATS:
        return node
    return tirx.Sub(opaque_bits(node.a), opaque_bits(node.b))


def _comparison(kind: Any) -> Callable[[Any], Any]:
    """The comparison, opaque to TVM, which would replace its negation by the opposite one: not the same for NaN."""

    def made(node: Any) -> Any:
        if str(node.a.ty.dtype) not in FLOATS:
            return node
        return kind(opaque_bits(node.a), node.b).astype("uint8").astype("bool")

    return made


def _extreme(bounded: Callable[[Any, Any], Any], either: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def made(node: Any) -> Any:
        if str(node.ty.dtype) not in FLOATS:
            return node
        constants = [isinstance(side, tirx.FloatImm) and side.value == side.value for side in (node.a, node.b)]
        if constants[1]:
            return bounded(node.b, node.a)
        return node if constants[0] else either(node.a, node.b)

    return made
