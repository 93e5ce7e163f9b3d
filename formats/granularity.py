"""Granularity: which elements share one scale: the whole tensor, a channel, a group along an axis, or a token.

A granularity is an object, not a string. `scale_shape(shape)` is the shape of the scales of a tensor of that shape;
`expand(scale, shape)` repeats them so that they broadcast against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def _check_axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise FormatError(f"axis {axis} is out of range for a tensor of shape {list(shape)}")
    return axis % len(shape)


@dataclass(frozen=True)
class PerTensor:
    """One scale for all elements."""

    name = "tensor"

    def scale_shape(self, shape: Shape) -> Shape:
        return ()

    def expand(self, scale: Array, shape: Shape) -> Array:
        return np.broadcast_to(scale, shape)


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of `axis` (0: the output channels of a weight)."""

    axis: int = 0
    name = "channel"

    def scale_shape(self, shape: Shape) -> Shape:
        return (shape[_check_axis(self.axis, shape)],)

    def expand(self, scale: Array, shape: Shape) -> Array:
        axis = _check_axis(self.axis, shape)
        return np.broadcast_to(scale.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


@dataclass(frozen=True)
class PerGroup:
    """One scale for every `size` consecutive elements along `axis`; the last group may be shorter."""

    size: int = 128
    axis: int = -1
    name = "group"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FormatError(f"group size must be at least 1, got {self.size}")

    def scale_shape(self, shape: Shape) -> Shape:
        axis = _check_axis(self.axis, shape)
        return tuple(-(-n // self.size) if i == axis else n for i, n in enumerate(shape))

    def expand(self, scale: Array, shape: Shape) -> Array:
        axis = _check_axis(self.axis, shape)
        return np.repeat(scale, self.size, axis=axis).take(range(shape[axis]), axis=axis)


@dataclass(frozen=True)
class PerToken:
    """One scale for each vector along the last axis: activations, with scales computed at run time."""

    name = "token"

    def scale_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], 1)

    def expand(self, scale: Array, shape: Shape) -> Array:
        return np.broadcast_to(scale, shape)


Granularity = PerTensor | PerChannel | PerGroup | PerToken
