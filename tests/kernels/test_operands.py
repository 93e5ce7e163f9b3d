"""Products by their operands: two run-time tensors of integers, float32 by low-bit weights, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import Generator, differing, error, rows_here
from products import SIGNED, UNSIGNED, weight

from subbyte.errors import CompileError
from subbyte.formats import LowBitTensor
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.operators import (
    Bits,
    Codes,
    Conv2d,
    Epilogue,
    Float,
    MatMul,
    Product,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

RNG = np.random.default_rng(23)
GENERATORS: list[Generator] = ["llvm", "c"]
EVERY_FORM = Epilogue((Scale(constant(0.01)),), (ToFloat(), ToCodes(3.0, UNSIGNED), ToBits(constant(0.5), Bits(11))))
SHAPES = [MatMul(1, 1, 11), MatMul(5, 33, 11, 3), MatMul(5, 64, 11, 2)]


@pytest.mark.parametrize("by", GENERATORS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_by_codes(shape: MatMul, transposed: bool, by: Generator) -> None:
    geometry = MatMul(shape.rows, shape.depth, shape.columns, shape.batch, transposed)
    left = RNG.integers(0, 256, (shape.batch, shape.rows, shape.depth)).astype(np.uint8)
    right = RNG.integers(0, 256, (shape.batch, shape.columns, shape.depth)).astype(np.uint8)
    stored = right if transposed else np.ascontiguousarray(right.swapaxes(1, 2))
    op = Product("scores", SIGNED, Codes(-3, 252, 3), geometry, EVERY_FORM)
    assert differing(op, "run-time-codes", [left, stored], by) == 0
    plain = Product("scores", SIGNED, Codes(-3, 252, 3), geometry, Epilogue())
    wanted = (left.astype(np.int64) - 128) @ (right.astype(np.int64) - 3).swapaxes(1, 2)
    np.testing.assert_array_equal(operators.run(plain, [left, stored])[0].reshape(wanted.shape), wanted)


@pytest.mark.parametrize("by", GENERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_by_bits(shape: MatMul, by: Generator) -> None:
    queries = RNG.choice([-1, 1], (shape.batch, shape.rows, shape.depth))
    keys = RNG.choice([-1, 1], (shape.batch, shape.columns, shape.depth))
    own = [pack_bits(queries), pack_bits(keys)]
    op = Product("scores", Bits(shape.depth), Bits(shape.depth), shape, EVERY_FORM)
    assert differing(op, "run-time-popcount", own, by) == 0
    plain = Product("scores", Bits(shape.depth), Bits(shape.depth), shape, Epilogue())
    wanted = queries @ keys.swapaxes(1, 2)
    np.testing.assert_array_equal(operators.run(plain, own)[0].reshape(wanted.shape), wanted)


@pytest.mark.parametrize("kernel", rows_here(Product[Float, LowBitTensor], "float-int8"))
@pytest.mark.parametrize("fmt", ["int8", "int4", "ternary"])
@pytest.mark.parametrize(
    "shape", [MatMul(1, 64, 70), MatMul(13, 40, 33), Conv2d(1, 7, 6, 4, 6, (3, 2), groups=2)], ids=str
)
def test_float_by_low_bit_weights(shape: MatMul | Conv2d, fmt: str, kernel: str) -> None:
    op, own = weight_only(shape, fmt)
    assert error(op, kernel, [own]) < 1e-5


@pytest.mark.parametrize("kernel", rows_here(Product[Float, LowBitTensor], "float-lookup"))
@pytest.mark.parametrize("group", [0, 7])
@pytest.mark.parametrize(
    "shape", [MatMul(1, 64, 70), MatMul(13, 41, 33), Conv2d(1, 7, 6, 4, 6, (3, 2), groups=2)], ids=str
)
def test_float_by_real_levels(shape: MatMul | Conv2d, group: int, kernel: str) -> None:
    op, own = weight_only(shape, "nf4", group)
    assert error(op, kernel, [own]) < 1e-6


@pytest.mark.parametrize("group", [0, 7])
def test_float_by_real_levels_in_c(group: int) -> None:
    op, own = weight_only(MatMul(13, 41, 33), "nf4", group)
    assert error(op, "float-lookup-portable", [own], "c") < 1e-6


def test_float_by_low_bit_weights_in_c() -> None:
    op, own = weight_only(MatMul(13, 40, 33), "int8")
    assert error(op, "float-int8-portable", [own], "c") < 1e-5


def test_weight_only_is_the_product_with_dequantized_weights() -> None:
    op, own = weight_only(MatMul(3, 40, 5), "int8")
    wanted = own.astype(np.float64) @ op.right.dequantize().astype(np.float64).T
    np.testing.assert_allclose(operators.run(op, [own])[0], wanted, rtol=1e-5)
    assert (op.facts().weights, op.facts().weight_bytes) == ("int8", 5 * 40 + 5 * 4)


def weight_only(shape: MatMul | Conv2d, fmt: str, group: int = 0) -> tuple[Product[Float, LowBitTensor], np.ndarray]:
    """A product with its scales by channel in the epilogue, or by group, and activations."""
    w = weight(shape, fmt, group)
    if isinstance(shape, MatMul):
        own: tuple[int, ...] = (shape.rows, shape.depth)
    else:
        own = (shape.batch, shape.height, shape.width, shape.channels)
    steps = () if group else (Scale(constant(w.scale.reshape(-1))),)
    op = Product("weight-only", Float(), w, shape, Epilogue(steps))
    return op, RNG.standard_normal(own).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (
            Product("p", SIGNED, Bits(8), MatMul(2, 8, 3), Epilogue()),
            r"no row is for Product\[Codes, Bits\]; there are",
        ),
        (Product("p", Bits(8), Bits(3), MatMul(2, 8, 3, 1, False), Epilogue()), "not packed along the reduction"),
        (Product("p", SIGNED, SIGNED, MatMul(1, 140_000, 1), Epilogue()), "beyond int32"),
        (Product("p", Float(), weight(MatMul(2, 8, 3), "int4", 4), MatMul(2, 8, 3), Epilogue()), "scales by group"),
        (Product("p", Float(), weight(MatMul(2, 8, 3), "uint8"), MatMul(2, 8, 3), Epilogue()), "more than 8 bits"),
    ],
)
def test_what_no_row_serves_is_refused_by_name(op: Product, reason: str) -> None:
    with pytest.raises(CompileError, match=f"no kernel for 'p'.*{reason}"):
        choose(op, frozenset({"avx512f", "avx2", "fma"}))
