"""IDX files: arrays of bytes, with their shape in a header."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError
from subbyte.files.plain import open_plain

_LARGEST = 1 << 30  # bytes; no file of this kind is larger


def read_idx(file: Path, magic: int, advice: str = "Download the file again.") -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped, whose first four bytes must be `magic`.

    `advice` ends what the errors say. Raises `DataError` for another magic number, or a length other than the header's.
    """
    try:
        with open_plain(file) as plain, gzip.open(plain) if file.suffix == ".gz" else plain as stream:
            content = stream.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error}). {advice}") from error
    axes = magic & 0xFF
    header = 4 + 4 * axes
    if len(content) < header:
        raise DataError(f"{file}: {len(content)} bytes are too few for an IDX header of {header}. {advice}")
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        raise DataError(f"{file}: magic number is 0x{found:08x}, expected 0x{magic:08x}. {advice}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{file}: {len(content)} bytes, but the header's shape {shape} needs {expected}. {advice}")
    values: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8, offset=header)
    try:
        shaped: npt.NDArray[np.uint8] = values.reshape(shape).copy()
    except ValueError as error:  # no elements, but sizes beside the 0 that no array can have
        raise DataError(f"{file}: the header's shape {shape} is none of an array. {advice}") from error
    return shaped
