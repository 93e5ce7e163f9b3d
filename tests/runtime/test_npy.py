"""The reader of `.npy`: the array as NumPy wrote it, or words; nothing is allocated on a file's word."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from subbyte.runtime.npy import load_npy, read_npy

DTYPES = ("float32", "uint8", "int8", "int32", "int64")


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


@given(st.data())
def test_what_numpy_wrote_is_read(data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(data.draw(st.sampled_from(DTYPES)), arrays.array_shapes(min_dims=0, min_side=0)))
    for kept in (array, np.asarray(array, order="F")):
        for version in ((1, 0), (2, 0)):
            got = read_npy(io.BytesIO(saved(kept, version)), str(array.dtype), array.shape)
            assert got.flags.c_contiguous
            assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an array saved by numpy.save"),
        (b"hello", "is not an array saved by numpy.save"),
        (saved(np.zeros((2, 3), np.float32))[:-1], "is not as long as its header says: 24 bytes of float32"),
        (saved(np.zeros((2, 3), np.float32)) + b"\0", "is not as long as its header says"),
        (saved(np.zeros((2, 3), np.float64)), r"is float64 \[2, 3\], expected float32 \[2, 3\]"),
        (saved(np.zeros((2, 3), ">f4")), r"is >f4 \[2, 3\], expected float32"),
        (saved(np.zeros((3, 2), np.float32)), r"is float32 \[3, 2\], expected float32 \[2, 3\]"),
        (saved(np.array([None] * 6).reshape(2, 3)), r"is object \[2, 3\], expected float32"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
            r"is float32 \[1099511627776\]",
        ),
        (header("(" * 9000), "is not an array saved by numpy.save"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}"), r"is float32 \[-2, -3\]"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{", "is not an array saved by numpy.save"),
        (b"\x93NUMPY\x03\x00" + saved(np.zeros((2, 3), np.float32))[8:], "is not an array saved by numpy.save"),
    ],
)
def test_what_is_not_wanted_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_npy(tmp_path / "x.npy", "float32", (2, 3))


def test_a_large_file_is_refused_by_its_header(tmp_path: Path) -> None:
    """The 3 GB that the header promises and the file holds, as a hole, are not read."""
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (805306368,)}"
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(header(text))
        file.truncate(len(header(text)) + 3 * (1 << 30))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"is float32 \[805306368\], expected float32 \[2, 3\]"):
            load_npy(tmp_path / "x.npy", "float32", (2, 3))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_truth_value_in_a_shape_counts_as_1() -> None:
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2)}\n"
    assert read_npy(io.BytesIO(header(text, b"\3\4")), "uint8", (1, 2)).tolist() == [[3, 4]]
