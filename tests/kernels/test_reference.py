"""The reference arithmetic of operators against slow loops, SciPy and hand-worked values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_sums import conv2d
from scipy.signal import correlate

from subbyte.errors import CompileError, FormatError
from subbyte.formats import LowBitTensor, PerChannel, PerGroup, PerTensor, get
from subbyte.tvm_kernels import operators as ops

RANDOM = np.random.default_rng(7)


def weight(name: str, shape: tuple[int, ...]) -> LowBitTensor:
    fmt = get(name)
    return LowBitTensor.from_levels(fmt, RANDOM.choice(fmt.levels.values, shape), 1.0, PerTensor())


@pytest.mark.parametrize("fmt", ["ternary", "int4", "int8", "binary", "pow2_4"])
def test_matmul_of_codes(fmt: str) -> None:
    w = weight(fmt, (5, 13))
    codes = RANDOM.integers(0, 256, (3, 13)).astype(np.uint8)
    op = ops.Product("m", ops.Codes(-128, 127, 128), w, ops.MatMul(3, 13, 5), ops.Epilogue())
    expected = (codes.astype(np.int64) - 128) @ w.levels().T
    np.testing.assert_array_equal(ops.run(op, [codes])[0], expected.astype(np.float32))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [((1, 1), (1, 1, 1, 1), (1, 1)), ((2, 1), (0, 1, 2, 0), (1, 2))]
)
def test_conv_of_codes(groups: int, stride, padding, dilation) -> None:
    conv = ops.Conv2d(2, 7, 6, 6, 12, (3, 2), stride, padding, dilation, groups)
    w = weight("int4", (12, 3, 2, 6 // groups))
    codes = RANDOM.integers(0, 16, (2, 7, 6, 6)).astype(np.uint8)
    op = ops.Product("c", ops.Codes(0, 15), w, conv, ops.Epilogue())
    expected = conv2d(codes, w.levels(), stride, padding, dilation, groups)
    np.testing.assert_array_equal(ops.run(op, [codes])[0], expected.astype(np.float32))


def test_padded_bits_count_as_plus_one() -> None:
    conv = ops.Conv2d(1, 2, 2, 3, 1, (3, 3), padding=(1, 1, 1, 1))
    w = LowBitTensor.from_levels(get("binary"), np.ones((1, 3, 3, 3), np.int64), 1.0, PerTensor())
    bits = np.zeros((1, 2, 2, 1), np.uint32)  # all -1
    op = ops.Product("b", ops.Bits(3), w, conv, ops.Epilogue())
    assert ops.run(op, [bits])[0].ravel().tolist() == [5 * 3 - 4 * 3] * 4


def test_groups_are_scaled_and_added_in_order() -> None:
    fmt, scale = get("int4"), RANDOM.standard_normal((3, 3)).astype(np.float32)
    w = LowBitTensor.from_levels(fmt, RANDOM.choice(fmt.levels.values, (3, 10)), scale, PerGroup(4))
    codes = RANDOM.integers(0, 256, (2, 10)).astype(np.uint8)
    op = ops.Product("g", ops.Codes(0, 255), w, ops.MatMul(2, 10, 3), ops.Epilogue())
    levels, found = w.levels(), ops.run(op, [codes])[0]
    for row in range(2):
        for column in range(3):
            total = np.float32(0)
            for group in range(3):
                part = slice(4 * group, min(10, 4 * group + 4))
                total = (
                    total + np.float32(int(codes[row, part].astype(int) @ levels[column, part])) * scale[column, group]
                )
            assert found[row, column] == total


def test_weight_zero_points_are_subtracted() -> None:
    w = LowBitTensor.from_levels(get("uint4"), [[0, 15], [8, 8]], [1.0, 1.0], PerChannel(), [8, 3])
    op = ops.Product("z", ops.Codes(0, 255), w, ops.MatMul(1, 2, 2), ops.Epilogue())
    assert ops.run(op, [np.array([[1, 2]], np.uint8)])[0].tolist() == [[-8 + 14, 5 + 10]]


def test_epilogue_is_float32_in_written_order() -> None:
    values = ops.constant([3e-8])
    op = ops.Elementwise("e", 1, 1, ops.Epilogue((ops.Bias(ops.constant([1.0])), ops.Bias(values), ops.Bias(values))))
    assert ops.run(op, [np.zeros((1, 1), np.float32)])[0][0, 0] == 1.0  # each small term is rounded away


def test_forms_store_what_storages_say() -> None:
    x = np.array([[-0.5, 0.5, 1.5, -0.0, 99.0]], np.float32)
    codes = ops.Codes(-4, 3, 128)
    stores = (
        ops.ToFloat(),
        ops.ToCodes(2.0, codes),
        ops.ToCodes(0.5, codes, divide=True),
        ops.ToBits(ops.constant(0.0), ops.Bits(5)),
    )
    real, multiplied, divided, bits = ops.run(ops.Elementwise("f", 1, 5, ops.Epilogue((), stores)), [x])
    np.testing.assert_array_equal(real, x)
    assert multiplied.tolist() == divided.tolist() == [[127, 129, 131, 128, 131]]
    assert bits.dtype == np.uint32
    assert bits.tolist() == [[0b11110]]


@pytest.mark.parametrize("count_padding", [False, True])
def test_average_counts_the_window_or_what_lies_inside(count_padding: bool) -> None:
    conv = ops.Conv2d(1, 2, 2, 1, 1, (2, 2), padding=(1, 1, 0, 0), groups=1)
    op = ops.Pool2d("p", "average", conv, ops.Float(), ops.Epilogue(), count_padding)
    found = ops.run(op, [np.full((1, 2, 2, 1), 4, np.float32)])[0].ravel().tolist()
    assert found == ([1.0, 2.0, 2.0, 4.0] if count_padding else [4.0] * 4)


def test_max_ignores_padding_and_sum_adds_levels() -> None:
    conv = ops.Conv2d(1, 2, 2, 1, 1, (2, 2), padding=(1, 1, 0, 0))
    maximum = ops.Pool2d("p", "max", conv, ops.Float(), ops.Epilogue())
    assert ops.run(maximum, [np.full((1, 2, 2, 1), -4, np.float32)])[0].ravel().tolist() == [-4.0] * 4
    total = ops.Pool2d("p", "sum", conv, ops.Codes(-128, 127, 128), ops.Epilogue())
    assert ops.run(total, [np.full((1, 2, 2, 1), 125, np.uint8)])[0].ravel().tolist() == [-3, -6, -6, -12]


def test_sums_beyond_int32_are_refused() -> None:
    w = LowBitTensor.from_levels(get("int8"), np.full((1, 140_000), -128), 1.0, PerTensor())
    op = ops.Product("m", ops.Codes(-128, 127, 128), w, ops.MatMul(1, 140_000, 1), ops.Epilogue())
    with pytest.raises(FormatError, match="beyond int32"):
        ops.run(op, [np.zeros((1, 140_000), np.uint8)])


def test_unknown_activations_are_named() -> None:
    op = ops.Elementwise("e", 1, 1, ops.Epilogue((ops.Activate("swash"),)))
    with pytest.raises(CompileError, match="swash"):
        ops.run(op, [np.zeros((1, 1), np.float32)])


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2), st.integers(0, 99)
)
def test_convolution_equals_scipy(
    kernel_h: int, kernel_w: int, stride: int, dilation: int, pad: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, w = rng.integers(-9, 10, (1, 7, 8, 3)), rng.integers(-9, 10, (2, kernel_h, kernel_w, 3))
    out = conv2d(a, w, (stride, stride), (pad, pad, pad, pad), (dilation, dilation))
    spread = np.zeros((2, (kernel_h - 1) * dilation + 1, (kernel_w - 1) * dilation + 1, 3), np.int64)
    spread[:, ::dilation, ::dilation] = w
    padded = np.pad(a[0], [(pad, pad), (pad, pad), (0, 0)])
    for o in range(2):
        full = correlate(padded, spread[o], mode="valid")[..., 0]
        np.testing.assert_array_equal(out[0, ..., o], full[::stride, ::stride])


def test_grouped_convolution_is_each_group_alone() -> None:
    rng = np.random.default_rng(0)
    a, w = rng.integers(-9, 10, (2, 5, 5, 4)), rng.integers(-9, 10, (6, 3, 3, 2))
    out = conv2d(a, w, groups=2)
    np.testing.assert_array_equal(out[..., :3], conv2d(a[..., :2], w[:3]))
    np.testing.assert_array_equal(out[..., 3:], conv2d(a[..., 2:], w[3:]))
