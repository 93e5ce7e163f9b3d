"""Intermediate results as ONNX would have them, from the bytes that kernels leave in the arena."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.runtime.manifest import OperatorOutput, stored_shape

Array = npt.NDArray[Any]


def read_output(output: OperatorOutput, arena: int, inputs: Sequence[Array], outputs: Sequence[Array]) -> Array | None:
    """A copy of one result, decoded; None if it is in scratch memory, which cannot be read after the operator."""
    if output.space == "arena":
        data = ctypes.string_at(arena + output.offset, output.bytes)
    elif output.space in ("input", "output"):
        data = (inputs if output.space == "input" else outputs)[output.offset].tobytes()
    else:
        return None
    return decode(output, np.frombuffer(data, output.dtype).reshape(stored_shape(output)))


def decode(output: OperatorOutput, stored: Array) -> Array:
    """The ONNX value of what is stored: codes to int32 levels, bits to int32 -1 / +1, NHWC to NCHW."""
    value = stored
    if output.storage == "codes":
        value = stored.astype(np.int32) - np.int32(output.zero_point)
    elif output.storage == "bits":
        value = signs(stored, output.channels)
    if output.layout == "NHWC" and value.ndim > 2:
        value = np.ascontiguousarray(np.moveaxis(value, -1, 1))
    return value


def signs(words: npt.NDArray[np.uint32], channels: int) -> npt.NDArray[np.int32]:
    """uint32 [..., ceil(channels / 32)] to int32 -1 / +1 [..., channels]; least significant bit first, 1 is +1."""
    little = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
    bits = np.unpackbits(little, axis=-1, count=channels, bitorder="little")
    values: npt.NDArray[np.int32] = np.where(bits, np.int32(1), np.int32(-1))
    return values
