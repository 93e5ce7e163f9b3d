"""Bit-sliced rows against the reference, through LLVM and as C; thresholds against the epilogues they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import products
import pytest
from agreement import Generator, row
from hypothesis import given, settings
from hypothesis import strategies as st
from products import columns_of, product, signs

from subbyte.tvm_kernels.kernels.any_cpu.sliced_count import Thresholds, thresholds
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Clip,
    Conv2d,
    Epilogue,
    MatMul,
    PRelu,
    Product,
    RowScale,
    Scale,
    ToBits,
    ToFloat,
)

BOTH: list[Generator] = ["llvm", "c"]


def epilogue(channels: int, seed: int = 0, steps: tuple[Any, ...] = (Activate("relu"),)) -> Epilogue:
    """Scales of both signs, some zero; thresholds some of which no sum reaches, and ties."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([-0.5, 0.0, 0.25, 1.0], channels).astype(np.float32)
    bias = rng.integers(-4, 5, channels).astype(np.float32)
    threshold = rng.choice([-1000.0, -0.5, 0.0, 0.25, 1.0, 1000.0], channels).astype(np.float32)
    return Epilogue((Scale(scale), Bias(bias), *steps), (ToBits(threshold, Bits(channels)),))


def differences(kernel: str, shape: Any, by: Generator) -> int:
    return products.differences(kernel, shape, signs(shape), "binary", epilogue(columns_of(shape)), by=by)


def depthwise(channels: int, kernel: tuple[int, int], **more: Any) -> Conv2d:
    return Conv2d(2, 5, 6, channels, channels, kernel, groups=channels, **more)


DEPTHWISE = {
    "whole words": depthwise(64, (3, 3), padding=(1, 1, 1, 1)),
    "words not full": depthwise(35, (3, 3), padding=(1, 1, 1, 1)),
    "one channel short of a word, no padding": depthwise(31, (2, 3)),
    "a wide kernel, uneven padding, stride, dilation": depthwise(
        33, (1, 9), stride=(2, 1), padding=(0, 4, 0, 5), dilation=(1, 1)
    ),
    "dilation": depthwise(8, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
}


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("shape", DEPTHWISE.values(), ids=DEPTHWISE.keys())
def test_depthwise(shape: Conv2d, by: Generator) -> None:
    assert differences("bit-slice-depthwise", shape, by) == 0


PRODUCTS = {
    "a vector": MatMul(1, 64, 10),
    "matrix": MatMul(7, 104, 41),
    "pointwise": Conv2d(1, 4, 5, 64, 64, (1, 1)),
    "padding is +1, words are not full": Conv2d(1, 5, 6, 40, 9, (3, 3), (2, 1), (1, 1, 1, 1)),
    "padding is +1, words are full": Conv2d(2, 4, 5, 64, 33, (3, 3), (1, 1), (1, 0, 0, 1), (1, 2)),
}


@pytest.mark.parametrize("shape", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_products(shape: Any) -> None:
    with code_generator("c"):
        assert differences("bit-slice", shape, "c") == 0


@settings(max_examples=30)
@given(depth=st.integers(1, 70), seed=st.integers(0, 1000), clip=st.booleans())
def test_thresholds_are_the_epilogue(depth: int, seed: int, clip: bool) -> None:
    steps: tuple[Any, ...] = (Clip(-1.0, 6.0),) if clip else (PRelu(np.full(40, 0.25, np.float32)),)
    after = epilogue(40, seed, steps)
    found = thresholds(after, depth, 40)
    assert isinstance(found, Thresholds)
    for count in range(depth + 1):
        y = np.full(40, depth - 2 * count, np.float32)
        y = y * after.steps[0].values + after.steps[1].values
        y = np.clip(y, -1, 6) if clip else np.where(y >= 0, y, y * np.float32(0.25))
        assert np.array_equal((count >= found.at) ^ found.inverted, y >= after.stores[0].threshold)


def test_what_it_refuses() -> None:
    bits = ToBits(np.zeros(1, np.float32), Bits(8))
    assert "not one output of bits" in str(thresholds(Epilogue((), (ToFloat(),)), 4, 8))
    assert "not one output of bits" in str(thresholds(Epilogue((), (bits, ToFloat())), 4, 8))
    assert "RowScale" in str(thresholds(Epilogue((RowScale("t"),), (bits,)), 4, 8))
    shape = MatMul(2, 8, 8)
    low_tip = Epilogue((PRelu(np.full(8, -1, np.float32)),), (ToBits(np.full(8, 3, np.float32), Bits(8)),))
    op = product(shape, Bits(8), "binary", low_tip)
    with code_generator("c"):
        assert "monotonic" in str(row(Product, "bit-slice").refuses(op))
        assert choose(op, frozenset()).kernel.name == "portable-popcount"
    assert row(Product, "bit-slice").refuses(op) == "for C sources only"
