"""Pooling against the reference: sums, largest values and codes bit for bit, averages within a rounding or two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, error, row, rows_here
from products import SIGNED

from subbyte.tvm_kernels.operators import (
    Bits,
    Codes,
    Conv2d,
    Epilogue,
    Float,
    Pool2d,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

RNG = np.random.default_rng(17)
KERNELS: list[Any] = [(name, "llvm") for name in rows_here(Pool2d)] + [("pool-portable", "c")]
SHAPES = {
    "one pixel": Conv2d(1, 1, 1, 1, 1, (1, 1)),
    "global": Conv2d(2, 5, 4, 37, 37, (5, 4), groups=37),
    "padded": Conv2d(1, 7, 6, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1), groups=5),
    "dilated": Conv2d(1, 8, 8, 20, 20, (2, 3), (1, 2), (0, 1, 1, 0), (2, 1), 20),
}


def codes(shape: Conv2d) -> Any:
    return RNG.integers(0, 256, (shape.batch, shape.height, shape.width, shape.channels)).astype(np.uint8)


def numbers(shape: Conv2d) -> Any:
    return RNG.standard_normal((shape.batch, shape.height, shape.width, shape.channels)).astype(np.float32)


@pytest.mark.parametrize(("kernel", "by"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sums_of_levels_are_exact(shape: Conv2d, kernel: str, by: Generator) -> None:
    window = shape.kernel[0] * shape.kernel[1]
    stores = (ToFloat(), ToCodes(20.0, SIGNED), ToBits(constant(0.0), Bits(shape.channels)))
    op = Pool2d("p", "sum", shape, SIGNED, Epilogue((Scale(constant(0.05 / window)),), stores))
    assert differing(op, kernel, [codes(shape)], by) == 0


@pytest.mark.parametrize(("kernel", "by"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_largest_values_are_exact(shape: Conv2d, kernel: str, by: Generator) -> None:
    op = Pool2d("p", "max", shape, Float(), Epilogue())
    assert differing(op, kernel, [numbers(shape) - 3], by) == 0
    assert differing(op, kernel, [np.full_like(numbers(shape), -np.inf)], by) == 0


@pytest.mark.parametrize(("kernel", "by"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("storage", [SIGNED, Codes(-60, 195, 60)], ids=["int8", "zero point 60"])
def test_largest_codes_are_exact(storage: Codes, shape: Conv2d, kernel: str, by: Generator) -> None:
    """Padding is below every code, whatever the zero point."""
    op = Pool2d("p", "max", shape, storage, Epilogue((), (ToCodes(1.0, storage), ToFloat())))
    assert differing(op, kernel, [codes(shape) // 4], by) == 0


@pytest.mark.parametrize(("kernel", "by"), KERNELS)
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_averages(shape: Conv2d, count_padding: bool, kernel: str, by: Generator) -> None:
    op = Pool2d("p", "average", shape, Float(), Epilogue(), count_padding)
    assert error(op, kernel, [numbers(shape)], by) < 1e-6


def test_what_pools_cannot_do_is_refused() -> None:
    shape = SHAPES["padded"]
    refuses = row(Pool2d, "pool-portable").refuses
    assert "sums are of codes" in str(refuses(Pool2d("p", "sum", shape, Float(), Epilogue())))
    assert "averages of float32" in str(refuses(Pool2d("p", "average", shape, SIGNED, Epilogue())))
