"""What a file or folder is, from its first bytes: for the error of whoever was given another kind than it reads.

To name another kind, add a row to `_STARTS` if its first bytes tell, else a function to `_READERS`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from subbyte.errors import UsageError
from subbyte.files.plain import open_plain, size_of

ONNX = "an ONNX model"
BUNDLE = "a .subbyte bundle"
CHECKPOINT = "the folder of a checkpoint"
ARCHIVE_OF_ARRAYS = "an archive of NumPy arrays (.npz)"

_STARTS = (
    (b"\x93NUMPY", "an array saved by NumPy"),
    (b"\x89HDF\r\n", "an HDF5 file (of Keras?)"),
    (b"\x7fELF", "a program or library"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (`git lfs pull` gets it)"),
    *((b"\x80" + bytes([protocol]), "a pickle (of PyTorch?)") for protocol in range(2, 6)),
)
_LONGEST_HEADER = 100 << 20  # bytes, of a safetensors file
_START_BYTES = 512  # bytes that are read of the start
_END_BYTES = 22 + 65535  # and of the end: the last record of a zip archive with the longest comment


def kind_of(path: Path) -> str | None:
    """What `path` is, as words with their article; None where its content does not tell, or it cannot be read.

    Never raises, and reads no more than the two ends of a file: whoever asks has an error of its own to report.
    """
    try:
        if path.is_dir():
            return CHECKPOINT if (path / "checkpoint.json").is_file() else "a folder without a checkpoint in it"
        with open_plain(path) as file:
            size = size_of(file)
            start = file.read(_START_BYTES)
            file.seek(max(0, size - _END_BYTES))
            end = file.read(_END_BYTES)
    except (OSError, ValueError, UsageError):  # ValueError: a path with a NUL in it; UsageError: it is the output
        return None
    if not start:
        return "an empty file"
    for bytes_of, kind in _STARTS:
        if start.startswith(bytes_of):
            return kind
    whole = File(start, end, size, path.suffix)
    return next((kind for read in _READERS for kind in [read(whole)] if kind), None)


class File(NamedTuple):
    """What the readers look at: both ends of a file, its size in bytes, and how its name ends."""

    start: bytes
    end: bytes
    size: int
    suffix: str


def _zip(file: File) -> str | None:
    """By its first member: the writers of all these put the telling one first."""
    if not file.start.startswith(b"PK\x03\x04"):
        return None
    if b"PK\x05\x06" not in file.end:
        return "a damaged or truncated zip archive" if file.suffix != ".subbyte" else "a damaged .subbyte bundle"
    first = file.start[30 : 30 + int.from_bytes(file.start[26:28], "little")]
    if first == b"manifest.json":
        return BUNDLE
    if first.endswith(b"data.pkl"):
        return "a file of torch.save (.pt, .pth)"
    return ARCHIVE_OF_ARRAYS if first.endswith(b".npy") else "a zip archive"


def _safetensors(file: File) -> str | None:
    if len(file.start) < 10:
        return None
    (header,) = struct.unpack("<Q", file.start[:8])
    fits = 2 <= header <= min(file.size - 8, _LONGEST_HEADER)
    return "a safetensors file: tensors without a graph" if fits and file.start[8:9] == b"{" else None


def _tflite(file: File) -> str | None:
    return "a TensorFlow Lite model" if file.start[4:8] == b"TFL3" else None


def _onnx(file: File) -> str | None:
    """The version of the IR (field 1), then another field of ModelProto: enough to tell it from the kinds above."""
    fields = {0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42}
    return (
        ONNX if len(file.start) > 2 and file.start[0] == 8 and file.start[1] < 64 and file.start[2] in fields else None
    )


def _text(file: File) -> str | None:
    text = file.start.decode("utf-8", "ignore")
    if len(text.encode()) < len(file.start) - 3 or any(not (c.isprintable() or c in "\r\n\t") for c in text):
        return None
    return "a web page" if "<html" in text.lower() or "<!doctype html" in text.lower() else "a text file"


_READERS: tuple[Callable[[File], str | None], ...] = (_zip, _safetensors, _tflite, _onnx, _text)
