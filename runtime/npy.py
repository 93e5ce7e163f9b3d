"""The one reader of `.npy` arrays: the header first, compared with what is wanted, then exactly the bytes that it says.

Nothing is allocated on a file's word. What is refused raises ValueError with words that follow the name of the file.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from subbyte.errors import one_line
from subbyte.files import limits
from subbyte.files.plain import open_plain

Array = npt.NDArray[Any]

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PREFIX = 12  # bytes before the header: magic, version, length


def load_npy(path: str | os.PathLike[str], dtype: str, shape: Sequence[int]) -> Array:
    """The array of a `.npy` file, of this dtype and shape; raises ValueError as `read_npy`, and OSError."""
    with open_plain(path) as file:
        return read_npy(file, dtype, shape)


def read_npy(file: BinaryIO, dtype: str, shape: Sequence[int]) -> Array:
    """The array of this dtype and shape that `file` holds from here to its end, contiguous.

    Raises ValueError for what is not `.npy` of version 1 or 2, and for an array of another dtype, shape or length.
    """
    start = file.read(_PREFIX + limits.NPY_HEADER_BYTES)
    head = io.BytesIO(start)
    try:
        found, fortran, kind = _READERS[np.lib.format.read_magic(head)](head, limits.NPY_HEADER_BYTES)
    except Exception as error:  # NumPy's header parser raises many kinds
        raise ValueError(f"is not an array saved by numpy.save ({one_line(error)})") from error
    if found != tuple(shape) or kind != np.dtype(dtype):
        raise ValueError(f"is {kind} {list(found)}, expected {dtype} {list(shape)}")
    values = np.empty(math.prod(found), kind)
    room = values.view(np.uint8).data
    rest = start[head.tell() :]
    at = min(len(rest), len(room))
    room[:at] = rest[:at]
    while at < len(room) and (count := file.readinto(room[at:])):  # type: ignore[attr-defined]
        at += count
    if at < len(room) or len(rest) > at or file.read(1):
        raise ValueError(
            f"is not as long as its header says: {len(room)} bytes of {kind} {list(found)}; it is truncated or damaged"
        )
    return np.asarray(values.reshape(tuple(shape), order="F" if fortran else "C"), order="C")
