"""Float products and products of run-time matrices against float64, through LLVM and as C.

Sums of K products differ by K roundings at most: K x 2^-24 of the sum of magnitudes, below the 1e-5 asked for here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from agreement import error, rows_here, run
from products import SIGNED, columns_of, rows_of

from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Combine,
    Conv2d,
    Epilogue,
    Float,
    FloatWeight,
    MatMul,
    Product,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

TOLERANCE = 1e-5
RNG = np.random.default_rng(11)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def product(geometry: MatMul | Conv2d, epilogue: Epilogue | None = None) -> tuple[Product[Float, FloatWeight], Any]:
    if isinstance(geometry, MatMul):
        weight, own = numbers(geometry.columns, geometry.depth), numbers(geometry.rows, geometry.depth)
    else:
        weight = numbers(geometry.out_channels, *geometry.kernel, geometry.channels // geometry.groups)
        own = numbers(geometry.batch, geometry.height, geometry.width, geometry.channels)
    return Product("p", Float(), FloatWeight(weight), geometry, epilogue or Epilogue()), own


SHAPES = {
    "one of each": MatMul(1, 1, 1),
    "short depth": MatMul(7, 3, 33),
    "a vector": MatMul(1, 64, 300),
    "last block of one row": MatMul(97, 33, 12),
    "panels of two widths": MatMul(13, 40, 197),
    "many tiles": MatMul(200, 65, 130),
    "same padding": Conv2d(1, 7, 6, 3, 5, (3, 3), padding=(1, 1, 1, 1)),
    "uneven padding, stride, dilation, groups": Conv2d(2, 9, 8, 4, 6, (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 2),
    "pointwise": Conv2d(2, 5, 5, 32, 20, (1, 1)),
    "pointwise with stride": Conv2d(1, 9, 9, 8, 20, (1, 1), (2, 2)),
    "window larger than the image": Conv2d(1, 2, 2, 4, 8, (5, 5), padding=(2, 2, 2, 2)),
    "one dimension": Conv2d(1, 1, 30, 6, 20, (1, 5), padding=(0, 2, 0, 2)),
    "many blocks": Conv2d(1, 30, 31, 64, 40, (3, 3), padding=(1, 1, 1, 1)),
}
IN_C = ["short depth", "a vector", "last block of one row", "uneven padding, stride, dilation, groups", "pointwise"]


@pytest.mark.parametrize("kernel", rows_here(Product[Float, FloatWeight], "float"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_float_product(shape: MatMul | Conv2d, kernel: str) -> None:
    op, own = product(shape)
    assert error(op, kernel, [own]) < TOLERANCE


@pytest.mark.parametrize("name", IN_C)
def test_float_product_in_c(name: str) -> None:
    op, own = product(SHAPES[name])
    assert error(op, "float-portable", [own], "c") < TOLERANCE


@pytest.mark.parametrize("kernel", rows_here(Product[Float, FloatWeight], "float"))
@pytest.mark.parametrize("shape", [MatMul(13, 40, 70), Conv2d(1, 4, 5, 6, 42, (3, 3), padding=(1, 1, 1, 1), groups=3)])
def test_epilogue_of_a_float_product(shape: MatMul | Conv2d, kernel: str) -> None:
    rows, columns = rows_of(shape), columns_of(shape)
    steps = (
        Scale(numbers(columns)),
        RowScale("step"),
        Bias(numbers(columns)),
        Combine("multiply", "gate"),
        Activate("silu"),
    )
    stores = (ToFloat(), ToBits(constant(0.25), Bits(columns)), ToCodes(30.0, SIGNED))
    op, own = product(shape, Epilogue(steps, stores))
    tensors = {"step": numbers(rows, 1), "gate": numbers(rows, columns)}
    (real, bits, codes), (want, want_bits, want_codes) = run(op, kernel, [own], tensors)
    scale = np.abs(want).max()
    assert np.abs(real - want).max() < TOLERANCE * scale
    # What is stored agrees with the float that this kernel computed, and ties apart with the reference's.
    signs = np.unpackbits(bits.view(np.uint8), axis=-1, bitorder="little")[..., :columns]
    np.testing.assert_array_equal(signs, real >= 0.25)
    levels = np.clip(np.rint(real * np.float32(30)), -128, 127)
    np.testing.assert_array_equal(codes.astype(int) - 128, levels)
    assert (bits != want_bits).mean() < 0.05
    assert np.abs(codes.astype(int) - want_codes).max() <= 1


BATCHES = [
    MatMul(1, 1, 1),
    MatMul(5, 3, 7, 2),
    MatMul(7, 33, 17, 3),
    MatMul(13, 20, 64, 7),
    MatMul(20, 5, 130),
    MatMul(40, 64, 40, 3),
]


@pytest.mark.parametrize("kernel", rows_here(Product[Float, Float]))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_batch_matmul(shape: MatMul, transposed: bool, kernel: str) -> None:
    op = batch_matmul(replace(shape, transposed=transposed), Scale(constant(0.125)))
    assert error(op, kernel, batch_inputs(op)) < TOLERANCE


@pytest.mark.parametrize("transposed", [False, True])
def test_batch_matmul_in_c(transposed: bool) -> None:
    op = batch_matmul(MatMul(7, 9, 11, 3, transposed), Combine("add", "mask"))
    assert error(op, "batch-matmul-portable", batch_inputs(op), "c", mask=numbers(21, 11)) < TOLERANCE


def batch_matmul(shape: MatMul, step: Scale | Combine) -> Product[Float, Float]:
    return Product("b", Float(), Float(), shape, Epilogue((step,)))


def batch_inputs(op: Product[Float, Float]) -> list[Any]:
    shape = op.geometry
    right = (shape.columns, shape.depth) if shape.transposed else (shape.depth, shape.columns)
    return [numbers(shape.batch, shape.rows, shape.depth), numbers(shape.batch, *right)]


DEPTHWISE = {
    "one channel": Conv2d(1, 5, 5, 1, 1, (3, 3), padding=(1, 1, 1, 1)),
    "odd channels": Conv2d(2, 7, 6, 5, 5, (3, 3), (2, 1), (1, 1, 1, 1), (1, 1), 5),
    "dilation": Conv2d(1, 9, 9, 70, 70, (3, 2), (1, 2), (0, 1, 2, 1), (2, 1), 70),
}


@pytest.mark.parametrize("kernel", rows_here(Product[Float, FloatWeight], "depthwise"))
@pytest.mark.parametrize("name", ["odd channels", "dilation"])
def test_depthwise(name: str, kernel: str) -> None:
    op, own = product(DEPTHWISE[name], Epilogue((Activate("relu"),)))
    assert error(op, kernel, [own]) < TOLERANCE


def test_depthwise_in_c() -> None:
    op, own = product(DEPTHWISE["odd channels"])
    assert error(op, "depthwise-portable", [own], "c") < TOLERANCE
