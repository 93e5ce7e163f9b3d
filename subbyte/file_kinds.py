"""What a file or folder is, from its first bytes: for the error of whoever was given another kind than it reads.

To name another kind, add a row to `_STARTS` if its first bytes tell, else a function to `_READERS`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

ONNX = "an ONNX model"
BUNDLE = "a .subbyte bundle"
CHECKPOINT = "the folder of a checkpoint"

_STARTS = (
    (b"\x93NUMPY", "an array saved by NumPy"),
    (b"\x89HDF\r\n", "an HDF5 file (of Keras?)"),
    (b"\x7fELF", "a program or library"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (`git lfs pull` gets it)"),
    *((b"\x80" + bytes([protocol]), "a pickle (of PyTorch?)") for protocol in range(2, 6)),
)
_LONGEST_HEADER = 100 << 20  # bytes, of a safetensors file


def kind_of(path: Path) -> str | None:
    """What `path` is, as words with their article; None where its content does not tell, or it cannot be read."""
    try:
        if path.is_dir():
            return CHECKPOINT if (path / "checkpoint.json").is_file() else "a folder without a checkpoint in it"
        if not path.is_file():  # to open a pipe would wait for its writer
            return None
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "an empty file"
    for bytes_of, kind in _STARTS:
        if start.startswith(bytes_of):
            return kind
    return next((kind for read in _READERS for kind in [read(path, start, size)] if kind), None)


def _zip(path: Path, start: bytes, size: int) -> str | None:
    if not start.startswith(b"PK\x03\x04"):
        return None
    import zipfile  # slow to import, and whoever loads a good bundle never comes here

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises whatever it likes: NotImplementedError for a version that it does not know
        return "a damaged or truncated zip archive" if path.suffix != ".subbyte" else "a damaged .subbyte bundle"
    if "manifest.json" in names:
        return BUNDLE
    if any(name.endswith("data.pkl") for name in names):
        return "a file of torch.save (.pt, .pth)"
    return "an archive of NumPy arrays (.npz)" if all(n.endswith(".npy") for n in names) else "a zip archive"


def _safetensors(path: Path, start: bytes, size: int) -> str | None:
    if len(start) < 10:
        return None
    (header,) = struct.unpack("<Q", start[:8])
    fits = 2 <= header <= min(size - 8, _LONGEST_HEADER)
    return "a safetensors file: tensors without a graph" if fits and start[8:9] == b"{" else None


def _tflite(path: Path, start: bytes, size: int) -> str | None:
    return "a TensorFlow Lite model" if start[4:8] == b"TFL3" else None


def _onnx(path: Path, start: bytes, size: int) -> str | None:
    """The version of the IR (field 1), then another field of ModelProto: enough to tell it from the kinds above."""
    fields = {0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42}
    return ONNX if len(start) > 2 and start[0] == 8 and start[1] < 64 and start[2] in fields else None


def _text(path: Path, start: bytes, size: int) -> str | None:
    text = start.decode("utf-8", "ignore")
    if len(text.encode()) < len(start) - 3 or any(not (c.isprintable() or c in "\r\n\t") for c in text):
        return None
    return "a web page" if "<html" in text.lower() or "<!doctype html" in text.lower() else "a text file"


_READERS: tuple[Callable[[Path, bytes, int], str | None], ...] = (_zip, _safetensors, _tflite, _onnx, _text)
