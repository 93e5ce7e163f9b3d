"""Row-wise kernels: softmax, layer norm, per-token quantization, elementwise; through LLVM and as C."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, error, rows_here, run
from products import SIGNED

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import tail
from subbyte.tvm_kernels.operators import (
    Bias,
    Bits,
    Clip,
    Codes,
    Combine,
    Elementwise,
    Epilogue,
    PRelu,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)
from subbyte.tvm_kernels.operators.layer_norm import LayerNorm
from subbyte.tvm_kernels.operators.quantize_tokens import QuantizeTokens
from subbyte.tvm_kernels.operators.softmax import Softmax

RNG = np.random.default_rng(13)
SHAPES = [(1, 1), (3, 7), (5, 67), (20, 197), (130, 64)]


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def kernels(serves: type, portable: str) -> list[Any]:
    """(row, generator): every row here by LLVM, the portable one as C too."""
    return [(name, "llvm") for name in rows_here(serves)] + [(portable, "c")]


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_tails_are_whole_and_within_vectors(lanes: int) -> None:
    for count in range(40):
        pieces = tail(count, lanes)
        covered = [offset + lane for offset, width in pieces for lane in range(width)]
        assert covered == list(range(count - count % lanes, count))


@pytest.mark.parametrize(("kernel", "by"), kernels(Softmax, "softmax-portable"))
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_softmax(rows: int, channels: int, kernel: str, by: Generator) -> None:
    op = Softmax("s", rows, channels)
    assert error(op, kernel, [numbers(rows, channels) * 10], by) < 1e-6


@pytest.mark.parametrize(("kernel", "by"), kernels(Softmax, "softmax-portable"))
def test_softmax_of_masked_rows(kernel: str, by: Generator) -> None:
    """A row masked in part is the softmax of the rest; one masked throughout is 0 / 0."""
    x = numbers(4, 37)
    x[1, 5:] = -np.inf
    x[2] = -np.inf
    x[3, 0] = np.inf
    with np.errstate(invalid="ignore"):
        (got,), (wanted,) = run(Softmax("s", 4, 37), kernel, [x], by=by)
    np.testing.assert_allclose(got[:2], wanted[:2], 0, 1e-6)
    assert np.isnan(got[2]).all()
    assert np.isnan(wanted[2]).all()
    assert np.isnan(got[3, 0])


@pytest.mark.parametrize("kernel", rows_here(Softmax))
def test_softmax_of_extremes(kernel: str) -> None:
    x = np.zeros((4, 21), np.float32)
    x[0] = 1e30
    x[1, 3] = 3e38
    x[2] = -1e4
    x[3, ::2] = -200.0
    (got,), (want,) = run(Softmax("s", 4, 21), kernel, [x])
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("kernel", "by"), kernels(LayerNorm, "layer-norm-portable"))
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_layer_norm(rows: int, channels: int, kernel: str, by: Generator) -> None:
    op = LayerNorm("n", rows, channels, 1e-6, numbers(channels), numbers(channels), Epilogue())
    assert error(op, kernel, [numbers(rows, channels) * 3 + 1], by) < 3e-6


@pytest.mark.parametrize("kernel", rows_here(LayerNorm))
def test_layer_norm_far_from_zero_and_its_codes(kernel: str) -> None:
    stores = (ToFloat(), ToCodes(20.0, SIGNED))
    op = LayerNorm("n", 9, 70, 1e-5, np.ones(70, np.float32), np.zeros(70, np.float32), Epilogue((), stores))
    (real, codes), (want, want_codes) = run(op, kernel, [numbers(9, 70) + 1000])
    assert np.abs(real - want).max() < 2e-3  # the input itself holds only 1000 +- 6e-5
    assert np.abs(codes.astype(int) - want_codes).max() <= 1


@pytest.mark.parametrize(("kernel", "by"), kernels(LayerNorm, "layer-norm-portable"))
@pytest.mark.parametrize("channels", [5, 13, 70, 193])
def test_layer_norm_of_rows_nearly_constant(channels: int, kernel: str, by: Generator) -> None:
    """A row of one value is beta: its mean, rounded, must not stand for a difference. So is one an ulp away."""
    x = np.repeat(np.float32([[97.300003], [-0.1], [1000.1], [0]]), channels, axis=1)
    x[3, 0] = np.nextafter(x[3, 0] + np.float32(3e3), np.float32(0))
    x[3, 1:] = np.float32(3e3)
    beta = numbers(channels)
    (got,), (wanted,) = run(LayerNorm("n", 4, channels, 1e-5, numbers(channels), beta, Epilogue()), kernel, [x], by=by)
    np.testing.assert_array_equal(got[:3], np.repeat(beta[None], 3, axis=0))
    np.testing.assert_allclose(got[3], wanted[3], 1e-4, 1e-5)


@pytest.mark.parametrize(("kernel", "by"), kernels(QuantizeTokens, "quantize-tokens-portable"))
@pytest.mark.parametrize(("rows", "channels"), SHAPES)
def test_quantize_tokens_bit_for_bit(rows: int, channels: int, kernel: str, by: Generator) -> None:
    x = numbers(rows, channels) * np.exp(numbers(rows, 1) * 4)
    assert differing(QuantizeTokens("q", rows, channels), kernel, [x], by) == 0


@pytest.mark.parametrize(("kernel", "by"), kernels(QuantizeTokens, "quantize-tokens-portable"))
def test_quantize_tokens_of_extremes(kernel: str, by: Generator) -> None:
    x = np.zeros((5, 19), np.float32)
    x[1] = -3.0  # all equal, and the largest magnitude is negative
    x[2] = 1e-7  # below the smallest step
    x[3] = np.linspace(-1, 1, 19)
    x[4, 0] = 3e38
    assert differing(QuantizeTokens("q", 5, 19), kernel, [x], by) == 0


STEPS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "one number": (Scale(constant(0.7)), Bias(constant(-0.1)), Clip(-1.3, 1.7)),
    "by channel": (Scale(numbers(1)), Bias(numbers(1)), PRelu(numbers(1))),
    "by row": (RowScale("step"),),
    "residual": (Combine("add", "other"), Combine("subtract", "other"), Combine("multiply", "other")),
}


@pytest.mark.parametrize(("kernel", "by"), kernels(Elementwise, "elementwise-portable"))
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("rows", "channels"), [(3, 7), (1000, 3), (5, 67)])
def test_elementwise_bit_for_bit(rows: int, channels: int, steps: tuple[Any, ...], kernel: str, by: Generator) -> None:
    if by == "c" and rows == 3:
        return
    wide = tuple(_by_channel(step, channels) for step in steps) if steps is STEPS["by channel"] else steps
    stores = (ToFloat(), ToCodes(50.0, SIGNED), ToCodes(0.04, Codes(0, 15), True))
    op = Elementwise("e", rows, channels, Epilogue(wide, stores))
    tensors = {}
    if steps is STEPS["by row"]:
        tensors["step"] = numbers(rows, 1)
    if steps is STEPS["residual"]:
        tensors["other"] = numbers(rows, channels)
    assert differing(op, kernel, [numbers(rows, channels)], by, **tensors) == 0


def _by_channel(step: Any, channels: int) -> Any:
    return type(step)(numbers(channels))


@pytest.mark.parametrize(("kernel", "by"), kernels(Elementwise, "elementwise-portable"))
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 32), (4, 33), (3, 131)])
def test_binarize_bit_for_bit(rows: int, channels: int, kernel: str, by: Generator) -> None:
    x = numbers(rows, channels)
    x.reshape(-1)[::3] = 0.0
    x.reshape(-1)[1::5] = -0.0
    op = Elementwise("b", rows, channels, Epilogue((), (ToBits(constant(0.0), Bits(channels)),)))
    assert differing(op, kernel, [x], by) == 0
