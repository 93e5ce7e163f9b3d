"""NaN goes through every kernel of floats as through ONNX: what is made of it is NaN, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Generator, rows_here, run

from subbyte.tvm_kernels.operators import (
    Activate,
    Clip,
    Conv2d,
    Elementwise,
    Epilogue,
    Float,
    Pool2d,
    PRelu,
    Step,
    constant,
)
from subbyte.tvm_kernels.operators.layer_norm import LayerNorm
from subbyte.tvm_kernels.operators.quantize_tokens import QuantizeTokens
from subbyte.tvm_kernels.operators.softmax import Softmax

NAN, INF = np.float32(np.nan), np.float32(np.inf)
# A NaN with either sign, as 0 / 0 makes it with the other one on x86 and Arm; both zeros, infinities, plain numbers.
VALUES = np.array([NAN, -NAN, 0.0, -0.0, INF, -INF, 3e38, -3e38, 1.0, -1.0, 100.0, -100.0, 0.25], np.float32)
FUNCTIONS = ["relu", "gelu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid"]
STEPS: list[Step] = [*map(Activate, FUNCTIONS), Clip(-1.5, 6.0), Clip(0.0, 6.0), PRelu(constant(0.25))]


def kernels(serves: type) -> list[Any]:
    """(row, generator): every row here by LLVM, the portable one as C too."""
    names = rows_here(serves)
    return [*((name, "llvm") for name in names), (next(name for name in names if "portable" in name), "c")]


@pytest.mark.parametrize(("kernel", "by"), kernels(Elementwise))
@pytest.mark.parametrize("step", STEPS, ids=lambda step: getattr(step, "function", type(step).__name__))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_elementwise(step: Step, kernel: str, by: Generator) -> None:
    """x sigmoid(x) and the like are NaN for -infinity too: infinity times 0."""
    x = np.tile(VALUES, 5).reshape(1, -1)  # vectors of every width, and what is left of them
    (got,), (wanted,) = run(Elementwise("e", 1, x.size, Epilogue((step,))), kernel, [x], by=by)
    assert np.isnan(wanted[np.isnan(x)]).all()
    assert not np.isnan(wanted[np.isfinite(x)]).any()
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("kernel", "by"), kernels(Pool2d))
@pytest.mark.parametrize("function", ["max", "average"])
def test_windows_of_nothing_else(function: Any, kernel: str, by: Generator) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 3, 37)).astype(np.float32)
    x[..., ::3] = NAN
    op = Pool2d("p", function, Conv2d(1, 3, 3, 37, 37, (2, 3), groups=37), Float(), Epilogue())
    (got,), (wanted,) = run(op, kernel, [x], by=by)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.isnan(got.reshape(2, 37)), [np.arange(37) % 3 == 0] * 2)


ROWWISE = [
    Softmax("s", 39, 37),
    LayerNorm("n", 39, 37, 1e-5, np.ones(37, np.float32), np.zeros(37, np.float32), Epilogue()),
    QuantizeTokens("q", 39, 37),
]


@pytest.mark.parametrize("op", ROWWISE, ids=lambda op: type(op).__name__)
def test_rows_that_hold_one(op: Any) -> None:
    """One NaN makes its row NaN, wherever it stands; of a row quantized by itself the step, which scales all of it."""
    x = np.random.default_rng(0).standard_normal((39, 37)).astype(np.float32)
    x[range(37), range(37)] = NAN
    for kernel, by in kernels(type(op)):
        got, wanted = run(op, kernel, [x], by=by)
        holding = np.isnan(got[-1].reshape(39, -1))
        assert holding[:37].all(), (kernel, by)
        assert not holding[37:].any(), (kernel, by)
        for g, w in zip(got, wanted, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
