"""Every dot row against the reference: zero differing integers, on shapes that do not divide and on extremes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from products import (
    CONVOLUTIONS,
    SIGNED,
    UNSIGNED,
    differences,
    product,
    row,
    runs_here,
    saturated_differences,
    stored_input,
    weight,
)

from subbyte.formats import LowBitTensor, PerChannel, get
from subbyte.tvm_kernels.operators import (
    Bias,
    Bits,
    Codes,
    Conv2d,
    Epilogue,
    MatMul,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

ROWS = [r for r in ("dot-avx512-vnni", "dot-avx-vnni", "dot-avx512", "dot-avx2") if runs_here(r)]
FORMATS = ["int8", "int5", "int4", "int2", "ternary", "pow2_4", "pow2_3n", "pow2_2n", "binary", "uint4"]
ODD = Codes(-3, 252, 3)


def test_some_row_runs_here() -> None:
    assert ROWS, "no dot row can run on this CPU, so nothing below was tested"


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format(kernel: str, fmt: str) -> None:
    matmul = MatMul(17, 45, 77)
    assert differences(kernel, matmul, SIGNED, weight(matmul, fmt)) == 0


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
@pytest.mark.parametrize(("kernel", "fmt"), [(kernel, "int8") for kernel in ROWS] + [(ROWS[0], "ternary")])
def test_convolutions(kernel: str, fmt: str, name: str) -> None:
    geometry = CONVOLUTIONS[name]
    assert differences(kernel, geometry, ODD, weight(geometry, fmt)) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize("fmt", ["int8", "ternary"])
def test_few_and_many_rows(kernel: str, rows: int, fmt: str) -> None:
    geometry = MatMul(rows, 260, 300)
    assert differences(kernel, geometry, SIGNED, weight(geometry, fmt)) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("level", [-128, 64, 65, 127])
def test_extremes_do_not_saturate(kernel: str, level: int) -> None:
    """All activations 255, all weights the same: 16-bit partial sums would saturate."""
    geometry = MatMul(7, 200, 40)
    assert saturated_differences(kernel, geometry, UNSIGNED, "int8", level, code=255) == 0
    if level == 127:
        assert saturated_differences(kernel, geometry, SIGNED, "int8", level, code=0) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize(
    ("geometry", "group"),
    [
        (MatMul(13, 148, 75), 32),
        (MatMul(1, 150, 75), 32),
        (MatMul(9, 30, 20), 128),
        (MatMul(9, 30, 20), 30),
        (Conv2d(1, 9, 11, 32, 20, (3, 3), (2, 2), (1, 1, 1, 1)), 16),
        (Conv2d(1, 5, 6, 36, 20, (1, 1)), 8),
        (Conv2d(1, 5, 6, 54, 40, (1, 1), groups=2), 8),  # as the lines of an Unfold are: 27 is no multiple of 4
        (Conv2d(1, 6, 6, 1, 8, (3, 3)), 32),
    ],
)
def test_weights_by_group_are_summed_in_order(kernel: str, geometry: MatMul | Conv2d, group: int) -> None:
    assert differences(kernel, geometry, SIGNED, weight(geometry, "int4", group)) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("columns", [10, 64, 100])
def test_fused_epilogue(kernel: str, columns: int) -> None:
    scale, bias, threshold = np.random.default_rng(3).normal(size=(3, columns)).astype(np.float32)
    stores = (ToFloat(), ToCodes(0.01, SIGNED), ToBits(threshold * 100, Bits(columns)))
    epilogue = Epilogue((Scale(scale), Bias(bias), Scale(constant(1.25))), stores)
    matmul = MatMul(40, 32, columns)
    assert differences(kernel, matmul, SIGNED, weight(matmul, "ternary"), epilogue) == 0
    convolution = Conv2d(1, 9, 10, 8, columns, (3, 3), padding=(1, 1, 1, 1), groups=2)
    assert differences(kernel, convolution, SIGNED, weight(convolution, "int8"), epilogue) == 0


@pytest.mark.parametrize("kernel", ROWS)
def test_affine_weights(kernel: str) -> None:
    rng = np.random.default_rng(4)
    levels, zero = rng.integers(0, 16, (20, 33)), rng.integers(0, 16, 20)
    weights = LowBitTensor.from_levels(get("uint4"), levels, np.ones(20), PerChannel(0), zero)
    assert differences(kernel, MatMul(5, 33, 20), SIGNED, weights) == 0


@settings(max_examples=12, derandomize=True)
@given(
    kernel=st.sampled_from(ROWS),
    fmt=st.sampled_from(FORMATS),
    zero_point=st.integers(0, 255),
    size=st.tuples(st.integers(1, 9), st.integers(1, 12)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_any_convolution(kernel, fmt, zero_point, size, channels, kernel_size, stride, padding) -> None:  # type: ignore[no-untyped-def]
    height, width = max(size[0], kernel_size[0]), max(size[1], kernel_size[1])
    geometry = Conv2d(1, height, width, *channels, kernel_size, stride, padding)
    activation = Codes(-zero_point, 255 - zero_point, zero_point)
    assert differences(kernel, geometry, activation, weight(geometry, fmt)) == 0


@settings(max_examples=8, derandomize=True)
@given(kernel=st.sampled_from(ROWS), fmt=st.sampled_from(FORMATS), shape=st.tuples(*[st.integers(1, 90)] * 3))
def test_any_matmul(kernel: str, fmt: str, shape: tuple[int, int, int]) -> None:
    geometry = MatMul(*shape)
    assert differences(kernel, geometry, SIGNED, weight(geometry, fmt)) == 0


def test_refusals_say_why() -> None:
    refuses = row("dot-avx2").refuses
    matmul = MatMul(1, 64, 8)

    def reason(fmt: str, activation: Codes = SIGNED, group: int = 0) -> str | None:
        return refuses(product(matmul, activation, weight(matmul, fmt, group)))

    assert reason("int8") is None
    assert reason("pow2_5") == "weight levels -16384..16384 do not fit 8 bits"
    assert reason("uint8") == "weight levels 0..255 do not fit 8 bits"
    assert not row("dot-avx2").matches(product(matmul, Bits(64), "int8"))
    assert reason("int4", SIGNED, 6) == "weight groups of 6 are not a multiple of 4"


def test_the_reference_can_tell_a_wrong_kernel() -> None:
    """The comparison itself: other inputs give other outputs."""
    geometry = MatMul(3, 8, 5)
    first, second = stored_input(geometry, SIGNED, 1), stored_input(geometry, SIGNED, 2)
    assert (first != second).any()
