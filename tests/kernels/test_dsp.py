"""Rows for Arm's DSP extension, as C on this machine (plain C in place of the instructions): zero differing bits."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import row
from hypothesis import given, settings
from hypothesis import strategies as st
from products import SIGNED, UNSIGNED, differences, product, saturated_differences, weight

from subbyte.tvm_kernels.kernels.arm_dsp.int16_pairs import pack_pairs
from subbyte.tvm_kernels.kernels.registry import Constant, choose
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Codes,
    Conv2d,
    Epilogue,
    MatMul,
    Product,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
)

FORMATS = ["binary", "ternary", "int2", "int3", "int4", "int5", "int6", "int7", "int8", "uint4", "uint8"]
FORMATS += ["pow2_2", "pow2_3n", "pow2_4", "pow2_5"]
DEPTHWISE = Conv2d(1, 5, 4, 8, 8, (3, 3), padding=(1, 1, 1, 1), groups=8)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format(fmt: str) -> None:
    shape = Conv2d(1, 3, 5, 3, 11, (3, 3), padding=(1, 1, 1, 1))
    assert differences("dsp", shape, SIGNED, fmt, by="c") == 0
    assert differences("dsp-depthwise", DEPTHWISE, SIGNED, fmt, by="c") == 0


GEOMETRIES = {
    "one of each": MatMul(1, 1, 1),
    "a vector": MatMul(1, 70, 100),
    "one column": MatMul(23, 9, 1),
    "rows, columns and depth odd": MatMul(33, 13, 9),
    "deep": MatMul(5, 1300, 6),
    "pointwise": Conv2d(2, 5, 3, 20, 33, (1, 1)),
    "pointwise with stride": Conv2d(1, 9, 9, 16, 33, (1, 1), (2, 2)),
    "channels in fours": Conv2d(1, 5, 5, 8, 6, (3, 3), padding=(1, 1, 1, 1)),
    "uneven padding, stride, dilation, batch": Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
    "groups": Conv2d(1, 7, 9, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
    "groups of fours": Conv2d(1, 4, 5, 16, 10, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    "window larger than the image": Conv2d(1, 2, 2, 4, 8, (5, 5), padding=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("activation", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("shape", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_geometries(shape: MatMul | Conv2d, activation: Codes) -> None:
    assert differences("dsp", shape, activation, "ternary", by="c") == 0


DEPTHWISES = {
    "no padding": Conv2d(2, 5, 6, 8, 8, (3, 3), groups=8),
    "uneven padding, stride, dilation, batch": Conv2d(2, 9, 11, 12, 12, (3, 2), (2, 1), (0, 1, 2, 1), (1, 2), 12),
    "a large kernel": Conv2d(1, 7, 7, 4, 4, (5, 5), padding=(2, 2, 2, 2), groups=4),
}


@pytest.mark.parametrize("activation", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("shape", DEPTHWISES.values(), ids=DEPTHWISES.keys())
def test_depthwise(shape: Conv2d, activation: Codes) -> None:
    assert differences("dsp-depthwise", shape, activation, "int4", by="c") == 0


@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("level", [-128, 127])
def test_saturated_operands(code: int, level: int) -> None:
    for kernel, shape in (("dsp", MatMul(3, 600, 3)), ("dsp-depthwise", DEPTHWISE)):
        assert saturated_differences(kernel, shape, SIGNED, "int8", level, code, by="c") == 0


@settings(max_examples=8)
@given(
    rows=st.integers(1, 40),
    depth=st.integers(1, 40),
    columns=st.integers(1, 40),
    fmt=st.sampled_from(FORMATS),
    zero_point=st.integers(0, 255),
)
def test_any_matrix(rows: int, depth: int, columns: int, fmt: str, zero_point: int) -> None:
    shape = MatMul(rows, depth, columns)
    assert differences("dsp", shape, Codes(-zero_point, 255 - zero_point, zero_point), fmt, by="c") == 0


@pytest.mark.parametrize("kernel", ["dsp", "dsp-depthwise"])
@pytest.mark.parametrize("low", [-128, 0])
def test_epilogues_round_ties_to_even_and_saturate(kernel: str, low: int) -> None:
    shape = MatMul(5, 9, 36) if kernel == "dsp" else Conv2d(1, 5, 4, 36, 36, (3, 3), padding=(1, 1, 1, 1), groups=36)
    codes = Codes(low, low + 255, -low)
    for factor in (0.5, 1e-3, 1e30):
        stores = (ToCodes(factor, codes), ToCodes(factor, codes, divide=True), ToBits(np.zeros(1), Bits(36)), ToFloat())
        steps = (Scale(np.ones(36, np.float32)), Bias(np.arange(36, dtype=np.float32)), Activate("relu"))
        for used in (stores, stores[:1], stores[1:3]):
            assert differences(kernel, shape, UNSIGNED, "int4", Epilogue(steps, used), by="c") == 0


def test_weights_keep_their_own_bits() -> None:
    shape = MatMul(8, 64, 64)
    for fmt, nbytes in (("binary", 512), ("ternary", 1024), ("int4", 2048), ("int8", 4096)):
        op = product(shape, SIGNED, fmt)
        built = row(Product, "dsp").build(op)
        stored = next(p.values for p in built.parameters if isinstance(p, Constant) and p.role == "weight")
        assert stored.nbytes == nbytes


def test_pairs_lie_sixteen_bits_apart() -> None:
    codes = np.arange(1, 7, dtype=np.uint8).reshape(1, 3, 2)
    assert pack_pairs(codes, 4).tolist() == [[0x06420531]]
    assert pack_pairs(codes, 8).tolist() == [[0x04020301, 0x00060005]]


def test_what_it_refuses_goes_to_the_portable_rows() -> None:
    shape = MatMul(2, 8, 4)
    features = frozenset({"dsp"})
    by_group = product(shape, SIGNED, weight(shape, "int4", group=4))
    assert choose(by_group, features).kernel.name == "portable"
    assert dict(choose(by_group, features).passed_over)["dsp"] == "scales by group"
    plain = product(shape, SIGNED, "int4")
    assert choose(plain, features).kernel.name == "dsp"
    assert choose(plain, frozenset()).kernel.name == "portable"
    depthwise = product(DEPTHWISE, SIGNED, "int4")
    assert choose(depthwise, features).kernel.name == "dsp-depthwise"
