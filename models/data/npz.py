"""Arrays in an `.npz` file; nothing in it is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subbyte.errors import DataError, one_line
from subbyte.files import limits
from subbyte.files.plain import open_plain
from subbyte.models.data.data_set import Data
from subbyte.models.data.in_memory import Samples
from subbyte.models.data.normalization import measured
from subbyte.models.data.register import register_data
from subbyte.models.data.split import TEST_SHARE, held_out
from subbyte.models.options import Count, Share

Array = npt.NDArray[Any]
PARTS = ("train", "test")


def read_npz(file: Path) -> dict[str, Array]:
    """The arrays of numbers of an `.npz` file by name.

    Raises DataError for another kind of file, objects, and arrays whose header does not fit what is stored.
    """
    try:
        with open_plain(file) as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > limits.ARCHIVE_BYTES:
                raise DataError(f"{file}: {size} bytes when decompressed, at most {limits.ARCHIVE_BYTES} are read.")
            arrays = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as content:
                    arrays[name] = _array(f"{file}: array '{name}'", content, member.file_size)  # type: ignore[arg-type]
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{file}: not an .npz file that can be read ({error}); save it again.") from error
    return arrays


def _array(where: str, content: BinaryIO, size: int) -> Array:
    """An array whose header is read first: its bytes must be those that are stored."""
    try:
        version = np.lib.format.read_magic(content)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_column, dtype = read(content, max_header_size=limits.NPY_HEADER_BYTES)
    except Exception as error:  # NumPy's header parser raises many kinds
        raise DataError(f"{where}: not a .npy array of version 1 or 2 ({one_line(error)}).") from error
    if dtype.kind not in "biuf":
        raise DataError(f"{where}: it is {dtype}, expected numbers; objects and texts are not read.")
    count = 1
    for axis in shape:
        count *= axis
    stored = size - content.tell()
    if count < 0 or count * dtype.itemsize != stored:
        raise DataError(f"{where}: {stored} bytes, its header says {dtype} {list(shape)}; save it again.")
    data = content.read(stored)
    if len(data) != stored:
        raise DataError(f"{where}: cut off after {len(data)} of {stored} bytes; copy the file again.")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C")


@register_data(
    "npz",
    summary="your own arrays: an .npz file with x and y, or x_train, y_train, x_test, y_test",
    shape=(),
)
def npz(
    path: Path,
    x: str = "x",
    y: str = "y",
    task: str = "classification",
    outputs: Count | None = None,
    normalize: bool = True,
    test_share: Share = TEST_SHARE,
) -> Data:
    """Arrays `x` [N, ...] and `y` [N, ...]: a share is held out, or those with _train and _test after their names.

    Integers [N, T] are tokens; uint8 of more axes are pixels, which with float32 and float64 are normalised by channel.
    `outputs` is 1 + the largest label, or the values of a target, unless it is given.
    """
    arrays = read_npz(path)
    parts = _parts(path, arrays, x, y, test_share)
    tokens = parts[0][0].ndim == 2 and parts[0][0].dtype.kind in "iu" and parts[0][0].dtype != np.uint8
    inputs = [_inputs(f"{path}: array '{x}'", values, tokens) for values, _ in parts]
    targets = [_targets(f"{path}: array '{y}'", values) for _, values in parts]
    if inputs[0].shape[1:] != inputs[1].shape[1:] or targets[0].shape[1:] != targets[1].shape[1:]:
        raise DataError(
            f"{path}: samples to train on and to test on have other shapes: {list(inputs[0].shape[1:])} and "
            f"{list(inputs[1].shape[1:])}, targets {list(targets[0].shape[1:])} and {list(targets[1].shape[1:])}."
        )
    channelled = not tokens and normalize and inputs[0].dim() <= 4
    largest = 255.0 if inputs[0].dtype == torch.uint8 else 1.0
    normalization = measured(inputs[0], inputs[0].dim() - 2, largest) if channelled and len(inputs[0]) else None
    if normalization is None:
        inputs = [values if tokens else values.to(torch.float32) for values in inputs]
    return Data(
        "npz",
        Samples(inputs[0], targets[0], normalization),
        Samples(inputs[1], targets[1], normalization),
        shape=tuple(inputs[0].shape[1:]),
        outputs=outputs or _outputs(targets, task, inputs if tokens else []),
        dtype="int64" if tokens else "float32",
        task=task,
        normalization=normalization,
    )


def _parts(path: Path, arrays: dict[str, Array], x: str, y: str, share: float) -> list[tuple[Array, Array]]:
    """Inputs and targets to train and to test on."""
    whole = x in arrays and y in arrays
    names = [(x, y)] if whole else [(f"{x}_{part}", f"{y}_{part}") for part in PARTS]
    missing = [name for pair in names for name in pair if name not in arrays]
    if missing:
        raise DataError(f"{path}: no array '{missing[0]}', nor '{x}' and '{y}'; it has: {', '.join(arrays) or 'none'}.")
    for pair in names:
        counts = [len(arrays[name]) if arrays[name].ndim else 0 for name in pair]
        if counts[0] != counts[1]:
            raise DataError(
                f"{path}: {counts[0]} rows of '{pair[0]}' and {counts[1]} of '{pair[1]}', expected as many."
            )
    found = [(arrays[one], arrays[other]) for one, other in names]
    if not whole:
        return found
    train, test = held_out("npz", len(found[0][0]), share)
    return [(found[0][0][rows], found[0][1][rows]) for rows in (train, test)]


def _inputs(where: str, values: Array, tokens: bool) -> Tensor:
    if values.ndim < 2:
        raise DataError(f"{where} is {values.dtype} {list(values.shape)}, expected two axes or more: [N, ...].")
    if tokens:
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype == np.uint8:
        return torch.from_numpy(values.copy())
    return torch.from_numpy(_finite(where, values))


def _targets(where: str, values: Array) -> Tensor:
    if values.dtype.kind == "f":
        return torch.from_numpy(_finite(where, values))
    return torch.from_numpy(values.astype(np.int64))


def _finite(where: str, values: Array) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(single))
    if len(wrong):
        place = tuple(map(int, wrong[0]))
        raise DataError(f"{where}: the value at {list(place)} is {values[place]}, expected finite numbers of float32.")
    return single


def _outputs(targets: Sequence[Tensor], task: str, tokens: Sequence[Tensor]) -> int:
    """1 + the largest label or token; or how many values a target has."""
    first = targets[0]
    if first.dtype.is_floating_point or task == "multi-label":
        return int(np.prod(first.shape[1:], dtype=np.int64))
    largest = [
        values.max() for values in (*targets, *(tokens if task == "language-modelling" else ())) if values.numel()
    ]
    return 1 + max(0, *map(int, largest)) if largest else 1
