"""Portable product rows, through LLVM and as C, against the reference: zero differing bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, row
from hypothesis import given, settings
from hypothesis import strategies as st
from products import (
    SIGNED,
    UNSIGNED,
    columns_of,
    differences,
    product,
    rows_of,
    saturated_differences,
    signs,
    stored_input,
    weight,
)

from subbyte.formats import Format, IntegerTable, LowBitTensor, PerChannel, PerGroup, PerTensor, get
from subbyte.tvm_kernels.kernels.registry import Constant
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Codes,
    Combine,
    Conv2d,
    Epilogue,
    MatMul,
    Product,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

FORMATS = ["binary", "ternary", "int2", "int3", "int4", "int5", "int6", "int7", "int8", "uint4", "uint8"]
FORMATS += ["pow2_2", "pow2_3n", "pow2_4", "pow2_5", "pow2_5n"]
BOTH: list[Generator] = ["llvm", "c"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_of_a_matrix(fmt: str) -> None:
    shape = MatMul(9, 37, 13)
    assert differences("portable", shape, SIGNED, weight(shape, fmt)) == 0


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_of_a_convolution_in_c(fmt: str) -> None:
    shape = Conv2d(1, 5, 6, 3, 10, (3, 3), padding=(1, 1, 1, 1))
    assert differences("portable", shape, UNSIGNED, weight(shape, fmt), by="c") == 0


GEOMETRIES = {
    "one of each": MatMul(1, 1, 1),
    "a vector": MatMul(1, 70, 100),
    "one column": MatMul(23, 9, 1),
    "a row more than a block": MatMul(97, 8, 8),
    "one pixel": Conv2d(1, 1, 1, 1, 1, (1, 1)),
    "pointwise": Conv2d(2, 5, 3, 20, 33, (1, 1)),
    "pointwise with stride": Conv2d(1, 9, 9, 16, 33, (1, 1), (2, 2)),
    "uneven padding, stride, dilation, batch": Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
    "groups": Conv2d(1, 7, 9, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
    "depthwise": Conv2d(1, 5, 5, 6, 12, (3, 3), padding=(1, 1, 1, 1), groups=6),
    "one dimension": Conv2d(1, 1, 30, 12, 20, (1, 5), padding=(0, 2, 0, 2)),
    "window larger than the image": Conv2d(1, 2, 2, 4, 8, (5, 5), padding=(2, 2, 2, 2)),
    "many tiles": Conv2d(1, 20, 21, 4, 40, (3, 3), padding=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("shape", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_geometries(shape: MatMul | Conv2d, by: Generator) -> None:
    assert differences("portable", shape, SIGNED, weight(shape, "ternary"), by=by) == 0


@settings(max_examples=12)
@given(
    rows=st.integers(1, 20),
    depth=st.integers(1, 50),
    columns=st.integers(1, 70),
    fmt=st.sampled_from(FORMATS),
    zero_point=st.integers(0, 255),
)
def test_any_matrix(rows: int, depth: int, columns: int, fmt: str, zero_point: int) -> None:
    shape = MatMul(rows, depth, columns)
    activation = Codes(-zero_point, 255 - zero_point, zero_point)
    assert differences("portable", shape, activation, weight(shape, fmt)) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("level", [-128, 127])
def test_saturated_operands(code: int, level: int, by: Generator) -> None:
    shape = Conv2d(1, 5, 5, 40, 9, (3, 3), padding=(1, 1, 1, 1))
    assert saturated_differences("portable", shape, SIGNED, "int8", level, code, by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(5)], ids=lambda g: g.name)
def test_weight_zero_points(granularity: Any, by: Generator) -> None:
    rng = np.random.default_rng(3)
    fmt = get("uint4")
    scales = granularity.scale_shape((11, 18))
    w = LowBitTensor.from_levels(
        fmt, rng.choice(fmt.levels.values, (11, 18)), rng.random(scales), granularity, rng.integers(0, 16, scales)
    )
    assert differences("portable", MatMul(7, 18, 11), SIGNED, w, by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize(
    "shape",
    [MatMul(9, 40, 21), MatMul(1, 7, 3), Conv2d(1, 5, 6, 6, 12, (3, 3), padding=(1, 1, 1, 1), groups=3)],
    ids=["matrix", "vector", "grouped convolution whose scales cross pixels"],
)
def test_scales_by_group(shape: Any, by: Generator) -> None:
    assert differences("portable", shape, SIGNED, weight(shape, "int4", group=7), by=by) == 0


BINARY = {
    "a vector": MatMul(1, 33, 10),
    "matrix": MatMul(7, 100, 41),
    "padding is +1, words are not full": Conv2d(1, 5, 6, 35, 9, (3, 3), (2, 1), (1, 1, 1, 1)),
    "padding is +1, words are full": Conv2d(2, 4, 5, 64, 9, (3, 3), (1, 1), (1, 0, 0, 1), (1, 2)),
}


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("kernel", ["portable-popcount", "portable"])
@pytest.mark.parametrize("shape", BINARY.values(), ids=BINARY.keys())
def test_bits_times_binary(shape: Any, kernel: str, by: Generator) -> None:
    assert differences(kernel, shape, signs(shape), weight(shape, "binary"), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
def test_bits_times_other_weights_and_groups(by: Generator) -> None:
    shape = Conv2d(1, 5, 5, 40, 8, (3, 3), padding=(1, 1, 1, 1), groups=2)
    assert differences("portable", shape, Bits(40), weight(shape, "int4"), by=by) == 0
    assert "grouped" in str(row(Product, "portable-popcount").refuses(product(shape, Bits(40), "binary")))


def test_sums_of_bytes_that_could_overflow_are_refused() -> None:
    shape = MatMul(1, 70_000, 1)
    reason = row(Product, "portable").refuses(product(shape, SIGNED, "int8"))
    assert "beyond int32" in str(reason)


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize(
    "shape",
    [MatMul(5, 9, 70), Conv2d(1, 4, 5, 3, 70, (3, 3), padding=(1, 1, 1, 1)), Conv2d(1, 4, 5, 6, 42, (1, 1), groups=6)],
    ids=["matrix", "convolution", "groups of 7 channels, which share words"],
)
def test_epilogues_with_all_forms(shape: Any, by: Generator) -> None:
    rng = np.random.default_rng(5)
    rows, columns = rows_of(shape), columns_of(shape)

    def numbers(*dims: int) -> Any:
        return rng.standard_normal(dims).astype(np.float32)

    steps = (
        Scale(constant(numbers(columns) * 1e-3)),
        RowScale("step"),
        Bias(numbers(columns)),
        Combine("add", "residual"),
        Activate("relu"),
    )
    stores = (ToFloat(), ToBits(numbers(columns), Bits(columns)), ToCodes(37.0, SIGNED), ToCodes(0.03, UNSIGNED, True))
    op = product(shape, UNSIGNED, "int4", Epilogue(steps, stores))
    stored = stored_input(shape, UNSIGNED)
    tensors = {"step": numbers(rows, 1), "residual": numbers(rows, columns)}
    assert differing(op, "portable", [stored], by, **tensors) == 0


@pytest.mark.parametrize(("fmt", "bits"), [("binary", 1), ("ternary", 2), ("int3", 3), ("int4", 4)])
def test_weights_stay_packed_at_their_own_bits(fmt: str, bits: int) -> None:
    shape = Conv2d(1, 8, 8, 16, 32, (3, 3), padding=(1, 1, 1, 1))
    built = row(Product, "portable").build(product(shape, SIGNED, fmt))
    stored = [p.values.nbytes for p in built.parameters if isinstance(p, Constant) and p.role == "weight"]
    assert stored == [32 * 9 * 16 * bits // 8]


NEW = {
    "a line": Format("quinary", IntegerTable((-2, -1, 0, 1, 2))),
    "steps of three": Format("thirds", IntegerTable((-3, 0, 3, 6))),
    "a table": Format("grown", IntegerTable((0, 1, 3, -200))),
}


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", NEW.values(), ids=NEW.keys())
def test_a_new_format_needs_no_new_kernel(fmt: Format, by: Generator) -> None:
    rng = np.random.default_rng(23)
    w = LowBitTensor.from_levels(fmt, rng.choice(fmt.levels.values, (9, 21)), 1.0, PerTensor())
    assert differences("portable", MatMul(5, 21, 9), SIGNED, w, by=by) == 0
