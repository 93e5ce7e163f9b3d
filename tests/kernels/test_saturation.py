"""Floats that no code stands for saturate to the last code, NaN to the lowest: by every row, through LLVM and as C."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import Generator, rows_here, run

from subbyte.tvm_kernels.operators import Codes, Elementwise, Epilogue, ToCodes

LARGE = np.array([256, 2.0**22, 2.0**23, 2.0**31 - 128, 2.0**31, 2.0**32, 1e20, 3e38, np.inf], np.float32)
BY: list[tuple[str, Generator]] = [*((name, "llvm") for name in rows_here(Elementwise)), ("elementwise-portable", "c")]


@pytest.mark.parametrize(("kernel", "by"), BY)
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("codes", [Codes(-128, 127, 128), Codes(0, 255), Codes(-3, 252, 3), Codes(-1, 6, 1)], ids=str)
def test_the_last_code_stands_for_all_beyond_it(codes: Codes, divide: bool, kernel: str, by: Generator) -> None:
    given = np.concatenate([LARGE, -LARGE, np.float32([np.nan, -np.nan, 0.5, 1.5])])
    given = np.tile(given, 3)  # vectors of every width, and what is left of them
    top, bottom = codes.high + codes.zero_point, codes.low + codes.zero_point
    wanted = (
        [top] * LARGE.size + [bottom] * (LARGE.size + 2) + [codes.zero_point, min(codes.high, 2) + codes.zero_point]
    )
    op = Elementwise("quantizer", 1, given.size, Epilogue((), (ToCodes(1.0, codes, divide),)))
    (got,), (reference,) = run(op, kernel, [given.reshape(1, -1)], by=by)
    assert got.reshape(-1).tolist() == wanted * 3
    assert reference.reshape(-1).tolist() == wanted * 3
