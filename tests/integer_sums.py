"""Exact sums of integer layers by the reference arithmetic of products, for tests of other packages."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from subbyte.tvm_kernels.operators import Conv2d, MatMul

Array = npt.NDArray[Any]


def matmul(activations: Array, weights: Array) -> Array:
    """Levels [rows, depth] with weights [columns, depth]: int32 [rows, columns]."""
    geometry = MatMul(activations.size // weights.shape[1], weights.shape[1], weights.shape[0])
    return geometry.sums(activations, weights).reshape(*activations.shape[:-1], -1)


def conv2d(
    activations: Array,
    weights: Array,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    pad_value: int = 0,
) -> Array:
    """Levels [B, H, W, C] with [O, kh, kw, C / groups]: int32 [B, H', W', O]."""
    channels, kernel = weights.shape[0], (weights.shape[1], weights.shape[2])
    geometry = Conv2d(*activations.shape, channels, kernel, stride, padding, dilation, groups)
    return geometry.sums(activations, weights, pad_value)
