"""Reference arithmetic: ties to even, sign of zero, and convolution against a second implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from subbyte.errors import FormatError
from subbyte.formats import reference


def test_rounding_is_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30], np.float32)
    assert reference.quantize(x, 1.0, -8, 7).tolist() == [0, 2, 2, 0, -2, 7, -8]


def test_the_sign_of_zero_is_plus() -> None:
    assert reference.binarize(np.array([0.0, -0.0, -1e-45], np.float32)).tolist() == [1, 1, -1]


def test_per_token_codes_use_the_whole_range() -> None:
    codes, step = reference.quantize_per_token(np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], np.float32))
    assert codes.tolist() == [[64, -128, 32], [0, 0, 0]]
    assert step[0, 0] == np.float32(2 / 128)


def test_bits_lie_least_significant_first_with_zero_padding() -> None:
    signs = -np.ones(35, np.int32)
    signs[[0, 31, 33]] = 1
    assert reference.pack_bits(signs).tolist() == [0x80000001, 0b10]


def test_an_accumulator_that_could_overflow_is_refused() -> None:
    assert reference.check_accumulator(1 << 16, 255, 127) == (1 << 16) * 255 * 127
    with pytest.raises(FormatError, match="beyond int32"):
        reference.check_accumulator(1 << 17, 255, 127)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2), st.integers(0, 99)
)
def test_convolution_equals_scipy(
    kernel_h: int, kernel_w: int, stride: int, dilation: int, pad: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, w = rng.integers(-9, 10, (1, 7, 8, 3)), rng.integers(-9, 10, (2, kernel_h, kernel_w, 3))
    out = reference.conv2d(a, w, (stride, stride), (pad, pad, pad, pad), (dilation, dilation))
    spread = np.zeros((2, (kernel_h - 1) * dilation + 1, (kernel_w - 1) * dilation + 1, 3), np.int64)
    spread[:, ::dilation, ::dilation] = w
    padded = np.pad(a[0], [(pad, pad), (pad, pad), (0, 0)])
    for o in range(2):
        full = correlate(padded, spread[o], mode="valid")[..., 0]
        np.testing.assert_array_equal(out[0, ..., o], full[::stride, ::stride])


def test_grouped_convolution_is_each_group_alone() -> None:
    rng = np.random.default_rng(0)
    a, w = rng.integers(-9, 10, (2, 5, 5, 4)), rng.integers(-9, 10, (6, 3, 3, 2))
    out = reference.conv2d(a, w, groups=2)
    np.testing.assert_array_equal(out[..., :3], reference.conv2d(a[..., :2], w[:3]))
    np.testing.assert_array_equal(out[..., 3:], reference.conv2d(a[..., 2:], w[3:]))
