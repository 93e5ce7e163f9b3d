"""Elementwise functions of float32 in NumPy, by name: the reference of `Activate`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from subbyte.errors import CompileError
from subbyte.tvm_kernels.operators.operands import Array, Float32

Float64 = npt.NDArray[np.float64]


def activate(function: str, y: Float32) -> Float32:
    """An elementwise function; relu, hardswish and hardsigmoid in float32, the others in float64, rounded once."""
    if function not in FUNCTIONS:
        raise CompileError(f"unknown activation '{function}'; known: {', '.join(sorted(FUNCTIONS))}")
    return FUNCTIONS[function](y).astype(np.float32)


def _sigmoid(y: Float64) -> Float64:
    small = np.exp(-np.abs(y))
    return np.asarray(np.where(y >= 0, 1 / (1 + small), small / (1 + small)))


def _erf(y: Float64) -> Float64:
    flat = [math.erf(value) for value in y.ravel().tolist()]
    return np.array(flat, np.float64).reshape(y.shape)


def _hardsigmoid(y: Float32) -> Float32:
    """min(max(y * (1/6) + 0.5, 0), 1): ONNX HardSigmoid with torch's alpha."""
    return np.asarray(np.clip(y * np.float32(1 / 6) + np.float32(0.5), np.float32(0), np.float32(1)))


FUNCTIONS: dict[str, Callable[[Float32], Array]] = {
    "relu": lambda y: np.where(y < 0, np.float32(0), y),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda y: y * _hardsigmoid(y),
    "sigmoid": lambda y: _sigmoid(y.astype(np.float64)),
    "tanh": lambda y: np.tanh(y.astype(np.float64)),
    "silu": lambda y: y * _sigmoid(y.astype(np.float64)),
    "gelu": lambda y: 0.5 * y * (1 + _erf(y.astype(np.float64) * math.sqrt(0.5))),
}
