"""Inputs of the golden run: given ones, or random ones that the model accepts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from subbyte.dialect.example_inputs import Range, index_ranges, indexes_by_input
from subbyte.errors import UsageError
from subbyte.files.kinds import ARCHIVE_OF_ARRAYS, kind_of
from subbyte.files.plain import open_plain, size_of
from subbyte.onnx_files.loader import Source, open_onnx
from subbyte.runtime.npy import load_npy, read_npy
from subbyte.tvm_kernels.onnx_model import load_model
from subbyte.tvm_kernels.plan import Tensor

Array = npt.NDArray[Any]
Given = str | Path | Mapping[str, Any] | Sequence[Any]


# ---- random ----


def golden_ranges(model: Source) -> dict[str, Range]:
    """The range of every input that indexes, in the file or in one of its functions."""
    file = open_onnx(model)
    return index_ranges(load_model(file)) if indexes_by_input(file.model) else {}


# ---- given ----


def read_inputs(given: Given, inputs: Sequence[Tensor]) -> list[Array]:
    """Given inputs in the model's order: arrays or .npy files in a list, arrays by name in a dict or an .npz file.

    A single .npy file or array serves a model with one input. Raises UsageError that names the input for one that is
    missing, unknown, of another shape or dtype, or holds NaN.
    """
    found: Any = given
    if isinstance(given, str | Path):
        archived = _archived(Path(given), inputs)
        found = [given] if archived is None else archived
    if isinstance(found, Mapping):
        _check_names(found, inputs)
        found = [found[tensor.name] for tensor in inputs]
    listed = [found] if isinstance(found, np.ndarray) else list(found)
    if len(listed) != len(inputs):
        raise UsageError(f"{len(listed)} golden inputs for a model with {len(inputs)}: give one for each")
    return [_checked(value, tensor) for value, tensor in zip(listed, inputs, strict=True)]


def _check_names(found: Collection[str], inputs: Sequence[Tensor]) -> None:
    names = [tensor.name for tensor in inputs]
    for name in found:
        if name not in names:
            raise UsageError(f"golden input '{name}' is not an input of the model; it has: {', '.join(names)}")
    for name in names:
        if name not in found:
            raise UsageError(f"golden input '{name}' is missing; the model has: {', '.join(names)}")


def _checked(value: Any, tensor: Tensor) -> Array:
    if isinstance(value, str | Path):
        return _of_file(Path(value), tensor)
    array = np.asarray(value)
    if array.shape != tuple(tensor.shape) or str(array.dtype) != tensor.dtype:
        raise UsageError(
            f"golden input '{tensor.name}' is {array.dtype} {list(array.shape)}, "
            f"the model takes {tensor.dtype} {list(tensor.shape)}"
        )
    nans = int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0
    if nans:
        raise UsageError(
            f"golden input '{tensor.name}': {nans:,} of its {array.size:,} elements are NaN, which Relu, Max and "
            "Clip do not propagate as ONNX does, and which the runtime refuses; give numbers or infinities"
        )
    return np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis


def _of_file(path: Path, tensor: Tensor) -> Array:
    try:
        return load_npy(path, tensor.dtype, tensor.shape)
    except OSError as error:
        raise UsageError(f"golden input {path} cannot be read: {error.strerror}; give a .npy or .npz file") from error
    except ValueError as error:
        kind = f"; it is {kind_of(path)}" if kind_of(path) == ARCHIVE_OF_ARRAYS else ""
        raise UsageError(f"golden input '{tensor.name}': {path} {error}{kind}; save it with numpy.save") from error


def _archived(path: Path, inputs: Sequence[Tensor]) -> dict[str, Array] | None:
    """The arrays by name of an .npz file; None for a file of another kind."""
    if kind_of(path) != ARCHIVE_OF_ARRAYS:
        return None
    # Stored they take what the inputs take, compressed hardly more; each has a header and a row of the directory.
    most = sum(2 * math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize + (1 << 16) for tensor in inputs)
    try:
        with open_plain(path) as file:
            if size_of(file) > most:
                raise UsageError(f"golden inputs {path} have {size_of(file)} bytes; the model's take at most {most}")
            with ZipFile(file) as archive:
                members = {name.removesuffix(".npy"): name for name in archive.namelist()}
                _check_names(members, inputs)
                return {tensor.name: _member(archive, members[tensor.name], path, tensor) for tensor in inputs}
    except UsageError:
        raise
    except Exception as error:  # zipfile raises whatever it likes
        raise UsageError(f"golden inputs {path} are not a readable .npz file: {error}") from error


def _member(archive: ZipFile, name: str, path: Path, tensor: Tensor) -> Array:
    with archive.open(name) as member:
        try:
            return read_npy(member, tensor.dtype, tensor.shape)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(f"golden input '{tensor.name}': member {name} of {path} {error}") from error
