"""Minima and maxima of floats that propagate NaN, as ONNX's do.

On every target `T.max(a, b)` is `a > b ? a : b`, one instruction of most processors: where one of the two is NaN, the
result is b. So a bound, which is never NaN, is the first operand; of two values that may be NaN the second is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret


def at_least(low: Any, x: Any) -> Any:
    """max(low, x) of a `low` that is not NaN; NaN where x is NaN, and -0 where x is -0 and low 0."""
    return T.max(low, x)


def at_most(high: Any, x: Any) -> Any:
    """min(high, x) of a `high` that is not NaN; NaN where x is NaN."""
    return T.min(high, x)


def larger(a: Any, b: Any) -> Any:
    """max(a, b); NaN where a or b is NaN."""
    return _either(T.max, a, b)


def smaller(a: Any, b: Any) -> Any:
    """min(a, b); NaN where a or b is NaN."""
    return _either(T.min, a, b)


def _either(extreme: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """extreme(b, a), or b where b is NaN; bound to variables, because TVM repeats an expression at each use."""
    second, result = (tvm.tirx.Var(name, str(b.ty.dtype)) for name in ("second", "result"))
    chosen = tvm.tirx.Select(second == opaque_bits(second), result, second)
    return tvm.tirx.Let(second, b, tvm.tirx.Let(result, extreme(second, a), chosen))


def opaque_bits(x: Any) -> Any:
    """The same float through its bits, which costs no instruction, and which TVM's simplifier does not see as x."""
    dtype = str(x.ty.dtype)
    return reinterpret(dtype, reinterpret(dtype.replace("float", "uint"), x))
