"""Minima and maxima of floats that hand on NaN, as ONNX's do.

On every target `T.max(a, b)` is `a > b ? a : b`, one instruction of most processors: where one of the two is NaN, it is
b. So a bound, which is a number, stands first; of two values that may be NaN the second is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret


def at_least(low: Any, x: Any) -> Any:
    """max(low, x) of a `low` that is not NaN; NaN where x is, and -0 where x is -0 and low 0."""
    return T.max(low, x)


def at_most(high: Any, x: Any) -> Any:
    """min(high, x) of a `high` that is not NaN; NaN where x is."""
    return T.min(high, x)


def larger(a: Any, b: Any) -> Any:
    """max(a, b); NaN where either is."""
    return _either(T.max, a, b)


def smaller(a: Any, b: Any) -> Any:
    """min(a, b); NaN where either is."""
    return _either(T.min, a, b)


def _either(extreme: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """extreme(b, a), which is a where b is NaN, or then b; each computed once, though TVM writes expressions out."""
    asked, made = (tvm.tirx.Var(name, str(b.ty.dtype)) for name in ("asked", "made"))
    chosen = tvm.tirx.Select(asked == opaque_bits(asked), made, asked)
    return tvm.tirx.Let(asked, b, tvm.tirx.Let(made, extreme(asked, a), chosen))


def opaque_bits(x: Any) -> Any:
    """The same float, of which TVM does not know that it is x: it does not look through bits, which cost nothing."""
    dtype = str(x.ty.dtype)
    return reinterpret(dtype, reinterpret(dtype.replace("float", "uint"), x))
