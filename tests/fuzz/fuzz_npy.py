"""Arrays saved by NumPy: a header by a grammar of what NumPy writes, half of it wrong, before data that may not fit."""

from __future__ import annotations

import io
import struct
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from corruption import Rng, corrupted, number, pick
from kinds import Fault

from subbyte.runtime.npy import load_npy

DTYPES = ("float32", "uint8", "int8", "int32", "int64")
OTHERS = ("float64", "float16", "bool", "complex64", "uint16", "S3", "U2", "object", "datetime64[s]", "V16")


def prepare(folder: Path) -> None:
    """Nothing is needed."""


def case(state: None, rng: Rng, folder: Path) -> str:
    """A file and what is wanted of it: read back to the bit where it is right and fits."""
    dtype = pick(rng, DTYPES)
    shape = tuple(int(n) for n in rng.integers(0, 6, int(rng.integers(0, 5))))
    array = np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)
    array = np.asarray(array, order=pick(rng, ("C", "F")))
    way = rng.random()
    if way < 0.3:
        data = _saved(array)
    elif way < 0.65:
        data = _written(array, rng)
    else:
        data = corrupted(_saved(array), rng)
    wanted = (dtype, shape) if rng.random() < 0.7 else _other(dtype, shape, rng)
    path = folder / "given"
    path.write_bytes(data)
    try:
        found = load_npy(path, *wanted)
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if not last.filename.endswith("npy.py") or not str(last.line).startswith("raise") or not str(error):
            raise
        if way < 0.3 and wanted == (dtype, shape):
            raise Fault(f"refused what numpy.save wrote: {error}") from error
        return "refused"
    if found.dtype != np.dtype(wanted[0]) or found.shape != wanted[1] or not found.flags.c_contiguous:
        raise Fault(f"got {found.dtype} {found.shape}, wanted {wanted}")
    if way < 0.3 and (wanted != (dtype, shape) or found.tobytes() != array.tobytes()):
        raise Fault("not the array that was saved")
    return "read"


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _other(dtype: str, shape: tuple[int, ...], rng: Rng) -> tuple[str, tuple[int, ...]]:
    if rng.random() < 0.5:
        return pick(rng, DTYPES), shape
    return dtype, (*shape[:-1], int(rng.integers(0, 9))) if shape else (1,)


def _written(array: np.ndarray, rng: Rng) -> bytes:
    """A header with one or two parts of it wrong; lengths and alignment as they come."""
    parts: dict[str, str] = {
        "descr": repr(array.dtype.str),
        "fortran_order": str(array.flags.f_contiguous and not array.flags.c_contiguous),
        "shape": str(array.shape),
    }
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, ("descr", "fortran_order", "shape"))
        parts[name] = _part(name, array, rng)
    if rng.random() < 0.1:
        parts.pop(pick(rng, tuple(parts)))
    if rng.random() < 0.1:
        parts["extra"] = "1"
    text = "{" + ", ".join(f"'{name}': {value}" for name, value in parts.items()) + pick(rng, (", }", "}", "", "}}"))
    header = text.encode("utf-8", "replace") + b" " * int(rng.integers(0, 70)) + pick(rng, (b"\n", b"\n", b"", b"\0"))
    major = int(pick(rng, (1, 1, 2, 3, 0, 255)))
    length = len(header) if rng.random() < 0.8 else number(rng)
    packed = struct.pack("<H", length & 0xFFFF) if major == 1 else struct.pack("<I", length & 0xFFFFFFFF)
    data = array.tobytes(order="A")
    if rng.random() < 0.3:
        data = data[: int(rng.integers(len(data) + 1))] + bytes(int(rng.integers(0, 9)))
    return b"\x93NUMPY" + bytes([major, 0 if rng.random() < 0.9 else 7]) + packed + header + data


def _part(name: str, array: np.ndarray, rng: Rng) -> str:
    if name == "descr":
        other: Any = pick(rng, OTHERS + DTYPES)
        texts = (repr(np.dtype(other).str), "'|O'", "[('a', '<f4')]", "'>f4'", "None", "''", "7", "'<f4' * 99999999")
        return str(pick(rng, (*texts, repr(other), "(" * 150 + ")" * 150, "__import__('os').abort()")))
    if name == "fortran_order":
        return str(pick(rng, ("True", "False", "1", "None", "'no'")))
    sizes = [*array.shape, *(number(rng) for _ in range(int(rng.integers(0, 3))))]
    texts = (str(tuple(sizes)), str(sizes), "(-1,)", "()", "None", "(2.0,)", "(True,)", f"({10**400},)", "(0, " * 40)
    return str(pick(rng, (*texts, f"({1 << 62}, 0)", f"({1 << 31}, {1 << 31}, 4)", "'abc'", "{1: 2}")))
