"""Random quantized products and the comparison with the reference, for the tests of the product rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from agreement import Generator, differing, rows_here
from agreement import row as row_of

from subbyte.formats import LowBitTensor, PerChannel, PerGroup, get
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels.kernels.registry import Kernel
from subbyte.tvm_kernels.operators import Bits, Codes, Conv2d, Epilogue, MatMul, QuantizedProduct

Array = npt.NDArray[Any]


def row(name: str) -> Kernel:
    """The kernel row of that name."""
    return row_of(QuantizedProduct, name)


def runs_here(name: str) -> bool:
    """Whether this CPU has what the row needs."""
    return name in rows_here(QuantizedProduct)


def weight(geometry: MatMul | Conv2d, fmt: str, group: int = 0, levels: Array | None = None) -> LowBitTensor:
    """A random weight, or one with these levels; scaled by channel or by group."""
    rng = np.random.default_rng(1)
    if isinstance(geometry, MatMul):
        shape: tuple[int, ...] = (geometry.columns, geometry.depth)
    else:
        shape = (geometry.out_channels, *geometry.kernel, geometry.channels // geometry.groups)
    if levels is None:
        levels = rng.choice(get(fmt).levels, shape)
    granularity = PerGroup(group) if group else PerChannel(0)
    scale = rng.random(granularity.scale_shape((shape[0], int(np.prod(shape[1:])))))
    return LowBitTensor.from_levels(get(fmt), np.broadcast_to(levels, shape), scale, granularity)


def stored_input(geometry: MatMul | Conv2d, activation: Codes | Bits, seed: int = 2) -> Array:
    """Random codes or packed signs."""
    rng = np.random.default_rng(seed)
    if isinstance(geometry, MatMul):
        shape: tuple[int, ...] = (geometry.rows, geometry.depth)
    else:
        shape = (geometry.batch, geometry.height, geometry.width, geometry.channels)
    if isinstance(activation, Bits):
        return pack_bits(rng.choice([-1, 1], shape))
    low, high = activation.low + activation.zero_point, activation.high + activation.zero_point
    return rng.integers(low, high + 1, shape).astype(np.uint8)


def differences(
    kernel: str,
    geometry: MatMul | Conv2d,
    activation: Codes | Bits,
    weights: LowBitTensor,
    epilogue: Epilogue | None = None,
    stored: Array | None = None,
    by: Generator = "llvm",
) -> int:
    """How many elements of all outputs differ from the reference, in any bit."""
    op = QuantizedProduct("layer", geometry, activation, weights, epilogue or Epilogue())
    return differing(op, kernel, [stored_input(geometry, activation) if stored is None else stored], by)
