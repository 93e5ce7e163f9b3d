"""Vectors of lanes in TIR, and scalars as vectors of one lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import tirx as T
from tvm.sym import Analyzer
from tvm.tirx import Broadcast, FloatImm, IntImm, Shuffle


def lanes_of(value: Any) -> int:
    """How many elements a TIR expression has; 1 for a scalar."""
    return int(value.ty.dtype.lanes)


def splat(value: Any, lanes: int) -> Any:
    """A scalar expression repeated in all lanes."""
    return value if lanes == 1 else Broadcast(value, lanes)


def vector_type(dtype: str, lanes: int) -> str:
    """The name of a vector type, e.g. float32x16."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def constants(dtype: str, values: Any) -> Any:
    """A vector of constants of the scalar type `dtype`, or a scalar for one value."""
    made = [(FloatImm if dtype.startswith("float") else IntImm)(dtype, value) for value in np.asarray(values).tolist()]
    if all(value == values[0] for value in values):
        return splat(made[0], len(made))
    return Shuffle(made, list(range(len(made))))


def reinterpret(dtype: str, value: Any) -> Any:
    """The bits of `value` as the type `dtype`, a scalar's or a vector's, of the same size.

    A constant becomes another constant: TVM treats a zero as the null pointer, and fails for other types.
    """
    value = Analyzer().simplify(value)
    if not isinstance(value, (IntImm, FloatImm)):
        return T.reinterpret(dtype, value)  # noqa: TID251
    into = tvm.DataType(dtype)
    element = str(into.with_lanes(1))
    return constants(element, np.array([value.value], str(value.ty.dtype)).view(element))
