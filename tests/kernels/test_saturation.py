"""Floats that no code stands for saturate to the last code, NaN to the lowest: by every row, through LLVM and as C."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from agreement import Generator, rows_here, run
from hypothesis import given
from hypothesis import strategies as st

from subbyte.tvm_kernels.kernels.tir.epilogue import never_nan
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Clip,
    Codes,
    Combine,
    Elementwise,
    Epilogue,
    PRelu,
    RowScale,
    Scale,
    Step,
    ToCodes,
    constant,
)

LARGE = np.array([256, 2.0**22, 2.0**23, 2.0**31 - 128, 2.0**31, 2.0**32, 1e20, 3e38, np.inf], np.float32)
BY: list[tuple[str, Generator]] = [*((name, "llvm") for name in rows_here(Elementwise)), ("elementwise-portable", "c")]


@pytest.mark.parametrize(("kernel", "by"), BY)
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("codes", [Codes(-128, 127, 128), Codes(0, 255), Codes(-3, 252, 3), Codes(-1, 6, 1)], ids=str)
def test_the_last_code_stands_for_all_beyond_it(codes: Codes, divide: bool, kernel: str, by: Generator) -> None:
    values = np.concatenate([LARGE, -LARGE, np.float32([np.nan, -np.nan, 0.5, 1.5])])
    values = np.tile(values, 3)  # vectors of every width, and what is left of them
    top, bottom = codes.high + codes.zero_point, codes.low + codes.zero_point
    wanted = (
        [top] * LARGE.size + [bottom] * (LARGE.size + 2) + [codes.zero_point, min(codes.high, 2) + codes.zero_point]
    )
    op = Elementwise("quantizer", 1, values.size, Epilogue((), (ToCodes(1.0, codes, divide),)))
    (got,), (reference,) = run(op, kernel, [values.reshape(1, -1)], by=by)
    assert got.reshape(-1).tolist() == wanted * 3
    assert reference.reshape(-1).tolist() == wanted * 3


NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def as_float32(steps: tuple[Step, ...], sums: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """The steps by NumPy, each rounded to float32."""
    y = sums.astype(np.float32)
    for step in steps:
        if isinstance(step, Scale):
            y = y * step.values
        elif isinstance(step, Bias):
            y = y + step.values
        elif isinstance(step, PRelu):
            y = np.where(y >= 0, y, y * step.values)
        else:
            y = np.maximum(y, np.float32(0))
    return y


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@given(
    st.lists(
        st.one_of(
            NUMBERS.map(lambda x: Scale(constant(x))),
            NUMBERS.map(lambda x: Bias(constant(x))),
            NUMBERS.map(lambda x: PRelu(constant(x))),
            st.just(Activate("relu")),
        ),
        max_size=5,
    )
)
def test_where_c_sources_skip_the_check_for_nan_no_sum_gives_it(steps: list[Step]) -> None:
    sums = np.array([-(2**31), -1, 0, 1, 2**31 - 1], np.int32)
    if never_nan(steps):
        assert np.isfinite(as_float32(tuple(steps), sums)).all()


def test_the_check_for_nan_is_skipped_for_plain_layers_alone() -> None:
    scale, bias, relu = Scale(constant([1e-4, 2e-4])), Bias(constant([3.0, -4.0])), Activate("relu")
    for plain in ((), (scale,), (scale, bias), (scale, bias, relu), (scale, PRelu(constant(0.25)))):
        assert never_nan(plain)
    for number in (1e35, np.inf, -np.inf, np.nan):
        for step in (Scale(constant(number)), PRelu(constant(number))):
            assert not never_nan((scale, step))
    for number in (3.4e38, np.inf, -np.inf, np.nan):
        assert not never_nan((scale, Bias(constant(number))))
    for other in (Combine("t", "add"), RowScale("t"), Activate("silu"), Clip(0.0, 6.0)):
        assert not never_nan((scale, other))
