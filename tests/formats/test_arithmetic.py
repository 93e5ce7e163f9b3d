"""Reference arithmetic of quantizers: ties to even, sign of zero, packing, and the bound of accumulators."""

import numpy as np
import pytest

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
