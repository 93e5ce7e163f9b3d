"""Reference arithmetic of quantizers in NumPy, which every target equals bit for bit. Products: tvm_kernels/operators/.

Integers are int32 and exact. Floats are float32 and follow contract 1: after the integer sum, multiply by the scales,
then add the bias; round to nearest, ties to even; no fused multiply-add.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from subbyte.errors import FormatError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]

ACCUMULATOR_LIMIT = 1 << 31  # int32
EXACT_FLOAT_LIMIT = 1 << 24  # float32 represents all smaller integers


def check_accumulator(depth: int, largest_activation: int, largest_weight: int) -> int:
    """The largest possible magnitude of an integer sum of that depth; raises FormatError when it overflows int32."""
    bound = depth * largest_activation * largest_weight
    if bound >= ACCUMULATOR_LIMIT:
        raise FormatError(
            f"sums of {depth} products of |a| <= {largest_activation} and |w| <= {largest_weight} can reach {bound}, "
            f"beyond int32; use fewer bits or split the layer"
        )
    return bound


def quantize(x: Float32, inverse_step: npt.ArrayLike, low: int, high: int) -> Int32:
    """clip(rint(x * inverse_step), low, high) as int32: one float32 multiplication, ties to even."""
    scaled = np.asarray(x, np.float32) * np.asarray(inverse_step, np.float32)
    return np.clip(np.rint(scaled), low, high).astype(np.int32)


def quantize_per_token(x: Float32) -> tuple[Int32, Float32]:
    """Codes in -128..127 and step [..., 1] of each vector along the last axis. BitNet b1.58, 2024.

    largest = max(max |x|, 1e-5); codes = clip(rint(x * (128 / largest)), -128, 127); step = largest / 128
    (the range of the published code; the paper has 127). In a vector with a NaN the step is NaN and all codes are -128.
    """
    x = np.asarray(x, np.float32)
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    nearest = np.rint(x * (np.float32(128) / largest))
    codes = np.where(np.isnan(nearest), -128, np.clip(nearest, -128, 127)).astype(np.int32)
    return codes, (largest * np.float32(1 / 128)).astype(np.float32)


def binarize(x: Float32, threshold: npt.ArrayLike = 0.0) -> Int32:
    """+1 where x >= threshold, else -1, int32; sign(0) = +1. `threshold` broadcasts against x."""
    return np.where(np.asarray(x, np.float32) >= np.asarray(threshold, np.float32), 1, -1).astype(np.int32)


def pack_bits(values: npt.NDArray[np.signedinteger]) -> UInt32:
    """Binary values (-1 or +1) [..., C] to uint32 [..., ceil(C / 32)], least significant bit first, padding bits 0."""
    values = np.asarray(values)
    bits = (values > 0).astype(np.uint8)
    pad = -values.shape[-1] % 32
    bits = np.pad(bits, [(0, 0)] * (values.ndim - 1) + [(0, pad)])
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4").astype(np.uint32)
