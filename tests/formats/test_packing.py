"""Packing: pack then unpack is the identity, whatever the shape; damaged payloads are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from subbyte.errors import FormatError
from subbyte.formats import pack, packed_length, unpack

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=13)


@given(st.data(), st.integers(1, 8), shapes)
def test_unpack_inverts_pack(data: st.DataObject, bits: int, shape: tuple[int, ...]) -> None:
    codes = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, (1 << bits) - 1)))
    packed = pack(codes, bits)
    assert packed.shape == (*shape[:-1], packed_length(shape[-1], bits))
    np.testing.assert_array_equal(unpack(packed, bits, shape[-1]), codes)


def test_the_documented_example() -> None:
    assert pack(np.array([1, 2, 0, 1, 3], np.uint8), 2).tolist() == [0b01_00_10_01, 0b11]


def test_three_bit_codes_cross_bytes_least_significant_first() -> None:
    packed = pack(np.array([0b101, 0b011, 0b110], np.uint8), 3)
    assert packed.tolist() == [0b10_011_101, 0b1]


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.array([4], np.uint8), 2, "does not fit"),
        (np.array([1], np.int64), 2, "uint8"),
        (np.array([1], np.uint8), 9, "1 to 8"),
        (np.uint8(1), 2, "at least one axis"),
    ],
)
def test_pack_refuses(codes: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        pack(np.asarray(codes), bits)


def test_unpack_refuses_a_wrong_length_and_dirty_padding() -> None:
    with pytest.raises(FormatError, match="expected 2"):
        unpack(np.zeros(3, np.uint8), 2, 5)
    with pytest.raises(FormatError, match="padding bits"):
        unpack(np.array([0, 0b100], np.uint8), 2, 5)
