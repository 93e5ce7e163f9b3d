"""The two files of a checkpoint: how they are written so that one rename commits both, and read with bounds.

`model-HASH.safetensors` holds the tensors, `checkpoint.json` names it. The tensors are written first, then the rename
of `checkpoint.json` replaces the old model by the new one, then the old tensors go: whenever the process is killed, the
description that is there names tensors that are there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from subbyte.errors import CheckpointError, UsageError
from subbyte.files import limits
from subbyte.files.kinds import CHECKPOINT, kind_of
from subbyte.files.output import write_file
from subbyte.files.plain import open_plain, size_of

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

DESCRIPTION = "checkpoint.json"
STATE, LOG = "training.safetensors", "log.csv"  # what a run resumes from, and a row of numbers for each epoch
_WEIGHTS = re.compile(r"model(-[0-9a-f]{16})?\.safetensors")  # without a hash up to version 2
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def weights_name(sha256: str) -> str:
    """The name of the file of tensors with this SHA-256, in hexadecimal."""
    return f"model-{sha256[:16]}.safetensors"


def is_weights_name(name: str) -> bool:
    """Whether a description may name this file: in its own folder, and one that a checkpoint wrote."""
    return _WEIGHTS.fullmatch(name) is not None


def files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint and of its training that are in `folder`; none if it is not a folder."""
    names = folder.iterdir() if folder.is_dir() else ()
    return [file for file in names if file.name in (DESCRIPTION, STATE) or is_weights_name(file.name)]


def commit(folder: Path, name: str, weights: bytes, description: bytes) -> None:
    """Write the tensors as `name`, then the description that names them, then delete other tensors; one at a time.

    Raises WriteError; the checkpoint that was there is then whole.
    """
    with _alone(folder):
        try:
            write_file(folder / name, weights)
            write_file(folder / DESCRIPTION, description)
        except BaseException:
            if _named_now(folder) != name:
                (folder / name).unlink(missing_ok=True)
            raise
        for file in folder.iterdir():
            if file.name != name and is_weights_name(file.name):
                file.unlink(missing_ok=True)


def read_description(folder: Path) -> bytes:
    """The bytes of the description; raises CheckpointError, or UsageError for a file instead of a folder."""
    with open_file(folder, DESCRIPTION) as file:
        content = file.read(limits.DESCRIPTION_BYTES + 1)
    if len(content) > limits.DESCRIPTION_BYTES:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: over {limits.DESCRIPTION_BYTES} bytes, expected the description of a checkpoint; "
            "copy or train it again."
        )
    return content


def open_file(folder: Path, name: str) -> BinaryIO:
    """A plain file of the checkpoint in `folder`, open to read; raises as `read_description`."""
    try:
        return open_plain(folder / name)
    except (OSError, ValueError) as error:
        kind = kind_of(folder)
        if kind is not None and kind != CHECKPOINT:
            wrong = UsageError if folder.is_file() else CheckpointError
            raise wrong(
                f"{folder} is not a checkpoint, it is {kind}; expected the folder that `subbyte train --out` made. "
                "Of a model of your own, `subbyte check BUNDLE` compares a bundle with its golden run."
            ) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{folder} is not a checkpoint: cannot read {name} ({reason}); give the folder that `subbyte train --out` "
            "made."
        ) from error


def parse(content: bytes, file: Path) -> Any:
    """JSON whose numbers are of a length that we write; raises CheckpointError."""
    try:
        return json.loads(content, parse_int=_integer, parse_float=_float)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged JSON ({error}); copy or train it again.") from error


def read_header(file: BinaryIO, path: Path, remedy: str = "copy or train it again") -> dict[str, Tensor]:
    """What a safetensors file says of its tensors, as tensors on the meta device: shape and dtype, no memory.

    Raises CheckpointError where the header is not that of a file of this size. `file` is then at the end of the header.
    """
    try:
        return _header(file)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); {remedy}.") from error


def check_bools(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError where a tensor of truth values holds a byte that is none: torch computes anything of it."""
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise CheckpointError(f"{path}: tensor '{name}' holds a truth value other than 0 and 1; copy it again.")


def _header(file: BinaryIO) -> dict[str, Tensor]:
    size = size_of(file)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, limits.TENSORS_HEADER_BYTES):
        raise ValueError(
            f"a header of {length} bytes in a file of {size}, at most {limits.TENSORS_HEADER_BYTES} are accepted"
        )
    header = json.loads(file.read(length), parse_int=_integer, parse_float=_float)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _DTYPES.get(row["dtype"]), [_dimension(n) for n in row["shape"]]
        if dtype is None:
            raise ValueError(f"tensor '{name}' has dtype {row['dtype']}, known are {', '.join(_DTYPES)}")
        nbytes = math.prod(shape) * dtype.itemsize
        if row["data_offsets"] != [end, end + nbytes]:
            raise ValueError(f"tensor '{name}' of shape {shape} is at {row['data_offsets']}, not {[end, end + nbytes]}")
        end += nbytes
        tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
    if 8 + length + end != size:
        raise ValueError(f"its tensors end at {8 + length + end} of {size} bytes")
    return tensors


def _dimension(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"a dimension is {number!r}")
    return number


def _integer(text: str) -> int:
    return int(_bounded(text))


def _float(text: str) -> float:
    value = float(_bounded(text))
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is beyond a float")
    return value


def _bounded(text: str) -> str:
    most = limits.NUMBER_CHARACTERS
    if len(text) > most:
        raise ValueError(f"a number of {len(text)} characters, {text[:10]}..., at most {most} are accepted")
    return text


def _named_now(folder: Path) -> str | None:
    """The tensors that the description in place names; None where it names none, or there is none."""
    try:
        name = parse(read_description(folder), folder / DESCRIPTION)["weights"]["file"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder: saves of several threads and processes follow one another.

    Where there are no locks (Windows, some network disks), two trainings must not share a folder.
    """
    if fcntl is None:
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
