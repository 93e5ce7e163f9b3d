"""Random quantized products and the comparison with the reference, for the tests of the product rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from agreement import Generator, differing, rows_here
from agreement import row as row_of

from subbyte.formats import LowBitTensor, PerChannel, PerGroup, get
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels.kernels.registry import KernelRow
from subbyte.tvm_kernels.operators import (
    Bias,
    Bits,
    Codes,
    Conv2d,
    Epilogue,
    MatMul,
    Product,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
)

Array = npt.NDArray[Any]
SIGNED = Codes(-128, 127, 128)
UNSIGNED = Codes(0, 255)

CONVOLUTIONS = {
    "no padding": Conv2d(1, 6, 17, 8, 16, (3, 3)),
    "uneven padding, stride, dilation, batch": Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
    "groups": Conv2d(1, 7, 9, 24, 40, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
    "groups of odd depth": Conv2d(1, 5, 5, 9, 12, (3, 3), padding=(1, 1, 1, 1), groups=3),
    "1x1": Conv2d(2, 5, 6, 33, 70, (1, 1)),
    "1x1 with stride": Conv2d(1, 9, 9, 16, 33, (1, 1), (2, 2)),
    "1 channel": Conv2d(1, 8, 8, 1, 16, (3, 3), padding=(1, 1, 1, 1)),
    "one dimension": Conv2d(1, 1, 50, 12, 20, (1, 5), padding=(0, 2, 0, 2)),
    "many channels": Conv2d(1, 4, 4, 68, 130, (3, 3), padding=(1, 1, 1, 1)),
    "window larger than the image": Conv2d(1, 2, 2, 4, 8, (5, 5), padding=(2, 2, 2, 2)),
    "many tiles": Conv2d(1, 30, 31, 16, 100, (3, 3), padding=(1, 1, 1, 1)),
}


def row(name: str) -> KernelRow:
    """The kernel row of that name."""
    return row_of(Product, name)


def runs_here(name: str) -> bool:
    """Whether this CPU has what the row needs."""
    return name in rows_here(Product)


def rows_of(geometry: MatMul | Conv2d) -> int:
    """Rows of the product: positions of a convolution."""
    return geometry.rows if isinstance(geometry, MatMul) else geometry.batch * geometry.out_height * geometry.out_width


def columns_of(geometry: MatMul | Conv2d) -> int:
    """Columns of the product: output channels of a convolution."""
    return geometry.columns if isinstance(geometry, MatMul) else geometry.out_channels


def signs(geometry: MatMul | Conv2d) -> Bits:
    """Signs as activations of the product."""
    return Bits(geometry.depth if isinstance(geometry, MatMul) else geometry.channels)


def weight(geometry: MatMul | Conv2d, fmt: str, group: int = 0, levels: Array | None = None) -> LowBitTensor:
    """A random weight, or one with these levels; scaled by channel or by group."""
    rng = np.random.default_rng(1)
    if isinstance(geometry, MatMul):
        shape: tuple[int, ...] = (geometry.columns, geometry.depth)
    else:
        shape = (geometry.out_channels, *geometry.kernel, geometry.channels // geometry.groups)
    if levels is None:
        levels = rng.choice(get(fmt).levels.values, shape)
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


def product(
    geometry: MatMul | Conv2d, activation: Codes | Bits, weights: LowBitTensor | str, epilogue: Epilogue | None = None
) -> Product:
    """A product with these weights, or random ones of the format of that name."""
    w = weight(geometry, weights) if isinstance(weights, str) else weights
    return Product("layer", activation, w, geometry, epilogue or Epilogue())


def every_store(columns: int) -> Epilogue:
    """Scales and biases, and every form of output: floats, codes, signs."""
    rng = np.random.default_rng(19)
    steps = (
        Scale(rng.random(columns).astype(np.float32) * np.float32(1e-3)),
        Bias(rng.standard_normal(columns).astype(np.float32)),
    )
    threshold = rng.standard_normal(columns).astype(np.float32)
    return Epilogue(steps, (ToFloat(), ToCodes(40.0, SIGNED), ToBits(threshold, Bits(columns))))


def saturated_differences(
    kernel: str, geometry: MatMul | Conv2d, activation: Codes, fmt: str, level: int, code: int, by: Generator = "llvm"
) -> int:
    """As `differences`, where all weights have one level and all activations one code: the largest sums."""
    stored = np.full_like(stored_input(geometry, activation), code)
    weights = weight(geometry, fmt, levels=np.array(level))
    return differences(kernel, geometry, activation, weights, stored=stored, by=by)


def differences(
    kernel: str,
    geometry: MatMul | Conv2d,
    activation: Codes | Bits,
    weights: LowBitTensor | str,
    epilogue: Epilogue | None = None,
    stored: Array | None = None,
    by: Generator = "llvm",
) -> int:
    """How many elements of all outputs differ from the reference, in any bit."""
    op = product(geometry, activation, weights, epilogue)
    return differing(op, kernel, [stored_input(geometry, activation) if stored is None else stored], by)
