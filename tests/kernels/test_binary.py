"""Every binary row against the reference: zero differing integers; left-over bits, padding, strides, groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from products import UNSIGNED, differences, product, row, runs_here, signs, stored_input, weight

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.kernels.tir.execute import run
from subbyte.tvm_kernels.operators import (
    Bits,
    Conv2d,
    Epilogue,
    MatMul,
    Scale,
    ToBits,
    ToFloat,
    constant,
)

ROWS = [r for r in ("binary-avx512-vpopcnt", "binary-avx2") if runs_here(r)]


def test_some_row_runs_here() -> None:
    assert ROWS, "no binary row can run on this CPU, so nothing below was tested"


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize(
    "geometry",
    [
        MatMul(17, 45, 77),
        MatMul(1, 300, 300),
        MatMul(50, 64, 128),
        Conv2d(1, 6, 7, 40, 33, (3, 3), padding=(1, 1, 1, 1)),
        Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
        Conv2d(1, 9, 11, 64, 40, (3, 3), (2, 2), (1, 1, 1, 1), groups=2),
        Conv2d(1, 8, 8, 96, 33, (1, 1), (2, 2)),
        Conv2d(1, 14, 14, 64, 64, (3, 3), padding=(1, 1, 1, 1)),
        Conv2d(1, 2, 2, 32, 8, (5, 5), padding=(2, 2, 2, 2)),
    ],
    ids=str,
)
def test_products_of_signs(kernel: str, geometry: MatMul | Conv2d) -> None:
    assert differences(kernel, geometry, signs(geometry), weight(geometry, "binary")) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("level", [-1, 1])
def test_all_equal_signs(kernel: str, level: int) -> None:
    """Left-over bits must not count: with 33 channels every sum is +-33."""
    geometry = Conv2d(1, 5, 5, 33, 20, (3, 3), padding=(1, 1, 1, 1))
    for stored in (np.zeros((1, 5, 5, 2), np.uint32), np.full((1, 5, 5, 2), (0xFFFFFFFF, 1), np.uint32)):
        weights = weight(geometry, "binary", levels=np.array(level))
        assert differences(kernel, geometry, Bits(33), weights, stored=stored) == 0


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("columns", [20, 64, 100])
def test_signs_in_and_out(kernel: str, columns: int) -> None:
    scale, threshold = np.random.default_rng(3).normal(size=(2, columns)).astype(np.float32)
    epilogue = Epilogue((Scale(scale),), (ToBits(threshold, Bits(columns)), ToFloat()))
    for geometry in (MatMul(40, 70, columns), Conv2d(1, 9, 10, 64, columns, (3, 3), padding=(1, 1, 1, 1), groups=2)):
        assert differences(kernel, geometry, signs(geometry), weight(geometry, "binary"), epilogue) == 0


@pytest.mark.parametrize("depth", [64, 63])
@pytest.mark.parametrize("steps", [(), (Scale(constant(0.3)),), (Scale(constant(0.0)),), (Scale(constant(1e38)),)])
def test_a_scale_that_takes_the_factor_two_changes_no_bit(depth: int, steps: tuple[Scale, ...]) -> None:
    """Bytes are compared, so that the sign of zero counts."""
    geometry = MatMul(50, depth, 33)
    op = product(geometry, Bits(depth), "binary", Epilogue(steps))
    stored = stored_input(geometry, Bits(depth))
    (got,) = run(op, [stored], row(ROWS[0]))
    (wanted,) = operators.run(op, [stored])
    assert got.tobytes() == np.ascontiguousarray(wanted).tobytes()


@pytest.mark.parametrize("kernel", ROWS)
def test_one_group_over_the_whole_depth_is_a_scale(kernel: str) -> None:
    geometry = Conv2d(1, 5, 5, 32, 20, (3, 3))
    assert differences(kernel, geometry, Bits(32), weight(geometry, "binary", 288)) == 0


@settings(max_examples=10, derandomize=True)
@given(
    kernel=st.sampled_from(ROWS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 12)),
    channels=st.tuples(st.integers(1, 100), st.integers(1, 70)),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_any_convolution(kernel, size, channels, kernel_size, stride, padding) -> None:  # type: ignore[no-untyped-def]
    height, width = max(size[0], kernel_size[0]), max(size[1], kernel_size[1])
    geometry = Conv2d(1, height, width, *channels, kernel_size, stride, padding)
    assert differences(kernel, geometry, signs(geometry), weight(geometry, "binary")) == 0


def test_refusals_say_why() -> None:
    refuses = row("binary-avx2").refuses

    def reason(geometry: MatMul | Conv2d, fmt: str, activation: Bits) -> str | None:
        return refuses(product(geometry, activation, fmt))

    assert reason(MatMul(1, 64, 8), "binary", Bits(64)) is None
    assert reason(MatMul(1, 64, 8), "ternary", Bits(64)) == "weights are ternary, not binary"
    assert not row("binary-avx2").matches(product(MatMul(1, 64, 8), UNSIGNED, "binary"))
    groups = Conv2d(1, 4, 4, 40, 8, (3, 3), groups=2)
    assert reason(groups, "binary", Bits(40)) == "groups of 20 channels are not whole words of 32"
