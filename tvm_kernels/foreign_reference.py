"""Operators of other domains as their specifications define them, for onnx's reference evaluator.

They are written from the definition alone and share nothing with lowering, whose mistakes they are there to find. To
add one: a class of the operator's name with its domain, in `OPERATORS`. Where ONNX has an operator of that name the
evaluator also passes the attributes of that one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


# ---- QONNX ----


def _half_away(x: Array) -> Array:
    return np.asarray(np.trunc(x + np.copysign(0.5, x)))


def _half_toward(x: Array) -> Array:
    return np.asarray(np.copysign(np.ceil(np.abs(x) - 0.5), x))


ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": _half_away,
    "HALF_DOWN": _half_toward,
}


class Quant(OpRun):
    """(round(clip(x / scale + zero_point)) - zero_point) * scale; scale, zero point and bits broadcast."""

    op_domain = "qonnx.custom_op.general"

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array,
        bits: Array,
        signed: int = 1,
        narrow: int = 0,
        rounding_mode: str = "ROUND",
    ) -> tuple[Array]:
        mode = rounding_mode.upper()
        if mode not in ROUNDINGS:
            raise ValueError(f"QONNX has no rounding mode {mode}; it has {', '.join(ROUNDINGS)}")
        scaled = (x / scale + zero_point).astype(np.float32)
        if signed and np.all(bits == 1):
            codes = np.where(scaled >= 0, np.float32(1), np.float32(-1))
        else:
            span = np.exp2(bits.astype(np.float32))
            low, high = (narrow - span / 2, span / 2 - 1) if signed else (np.zeros_like(span), span - 1 - narrow)
            codes = ROUNDINGS[mode](np.clip(scaled, low, high))
        return (((codes - zero_point) * scale).astype(np.float32),)


class BipolarQuant(OpRun):
    """+scale where x >= 0, else -scale."""

    op_domain = "qonnx.custom_op.general"

    def _run(self, x: Array, scale: Array) -> tuple[Array]:
        return ((np.where(x >= 0, np.float32(1), np.float32(-1)) * scale).astype(np.float32),)


# ---- onnxruntime's contributed operators ----


class MatMulNBits(OpRun):
    """A [..., K] times the dequantized B [N, K] transposed, in float32, whatever `accuracy_level` hints."""

    op_domain = "com.microsoft"

    def _run(
        self,
        a: Array,
        b: Array,
        scales: Array,
        zero_points: Array | None = None,
        g_idx: Array | None = None,
        bias: Array | None = None,
        *,
        K: int,
        N: int,
        block_size: int,
        bits: int = 4,
        **_hints: Any,
    ) -> tuple[Array]:
        blocks = -(-K // block_size)
        codes = _unpacked(b.reshape(N * blocks, -1), bits, block_size).reshape(N, blocks * block_size)[:, :K]
        group = np.arange(K) // block_size if g_idx is None else g_idx.reshape(-1)[:K]
        if zero_points is None:
            zeros = np.full((N, blocks), 1 << (bits - 1), np.float32)
        elif zero_points.dtype == np.uint8:
            zeros = _unpacked(zero_points.reshape(N, -1), bits, blocks).astype(np.float32)
        else:
            zeros = zero_points.reshape(N, blocks).astype(np.float32)
        steps = scales.reshape(N, blocks).astype(np.float32)
        weights = (codes.astype(np.float32) - zeros[:, group]) * steps[:, group]
        result = np.matmul(a.astype(np.float32), weights.T)
        return ((result if bias is None else result + bias).astype(a.dtype),)


def _unpacked(data: Array, bits: int, count: int) -> Array:
    """Unsigned codes of rows of bytes, the first in the lowest bits: uint8 [rows, count]."""
    fields = np.unpackbits(np.ascontiguousarray(data.view(np.uint8)), axis=1, bitorder="little")
    codes = fields[:, : count * bits].reshape(len(data), count, bits)
    return np.asarray(np.packbits(codes, axis=-1, bitorder="little")[..., 0])


class Gelu(OpRun):
    """x / 2 * (1 + erf(x / sqrt(2)))."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, **_others: Any) -> tuple[Array]:
        half = np.vectorize(erf, otypes=[np.float64])(x.astype(np.float64) / np.sqrt(2.0))
        return ((x * 0.5 * (1.0 + half)).astype(x.dtype),)


def _along(values: Array, axis: int, rank: int) -> Array:
    return (
        values
        if values.ndim == 0 or values.size == 1
        else values.reshape([-1 if i == axis else 1 for i in range(rank)])
    )


class QuantizeLinear(OpRun):
    """As ONNX's, before its opset had these types."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, scale: Array, zero_point: Array | None = None, axis: int = 1, **_: Any) -> tuple[Array]:
        at = axis % max(1, x.ndim)
        zero = np.zeros((), np.uint8) if zero_point is None else zero_point
        limits = np.iinfo(zero.dtype)
        codes = np.rint(x / _along(scale, at, x.ndim)) + _along(zero, at, x.ndim).astype(np.float32)
        return (np.clip(codes, limits.min, limits.max).astype(zero.dtype),)


class DequantizeLinear(OpRun):
    """As ONNX's, before its opset had these types."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, scale: Array, zero_point: Array | None = None, axis: int = 1, **_: Any) -> tuple[Array]:
        at = axis % max(1, x.ndim)
        zero = np.zeros((), np.int32) if zero_point is None else zero_point.astype(np.int32)
        levels = x.astype(np.int32) - _along(zero, at, x.ndim)
        return ((levels.astype(np.float32) * _along(scale, at, x.ndim)).astype(scale.dtype),)


# ---- standard operators that the evaluator computes otherwise ----


class BatchNormalization(OpRun):
    """Inference, of every opset: before opset 14 the evaluator takes a node for one of training, by its momentum."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float = 1e-5,
        training_mode: int = 0,
        **_others: Any,
    ) -> tuple[Array]:
        if training_mode:
            raise NotImplementedError("BatchNormalization in training mode")
        scale, bias, mean, variance = (_along(v, 1, x.ndim) for v in (scale, bias, mean, variance))
        return ((scale * (x - mean) / np.sqrt(variance + np.float32(epsilon)) + bias).astype(x.dtype),)


OPERATORS = (Quant, BipolarQuant, MatMulNBits, Gelu, QuantizeLinear, DequantizeLinear, BatchNormalization)
