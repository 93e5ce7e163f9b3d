"""The data that an ONNX file keeps in other files: beside it, plain, as long as the shapes say, and read once.

Initializers that share a range of a file become one, so that a small file cannot be made large by naming it often.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from subbyte.dialect.payloads import tensor_bytes
from subbyte.dialect.walk import all_graphs, every_tensor
from subbyte.errors import ModelError
from subbyte.files import limits
from subbyte.files.plain import open_plain, size_of


@dataclass(frozen=True)
class _Range:
    """The bytes of a tensor: of a file (its path without links), `length` from `start`."""

    file: Path
    start: int
    length: int


def load_external(model: onnx.ModelProto, folder: Path | None) -> int:
    """Load external data into the model, in place; returns their bytes. All files are in `folder`, that of the model.

    Raises ModelError for data outside of it, that are missing, no plain file, of another length than their tensor, or
    over the limit.
    """
    if not any(map(_is_external, every_tensor(model))):
        return 0
    if folder is None:
        raise ModelError("a model in memory has no folder for external data: load them first, or give its file")
    folder = folder.resolve()
    _share(model, folder)
    wanted: dict[Path, list[tuple[_Range, onnx.TensorProto]]] = {}
    for tensor in filter(_is_external, every_tensor(model)):
        found = _range(tensor, folder)
        wanted.setdefault(found.file, []).append((found, tensor))
    total = sum(found.length for rows in wanted.values() for found, _ in rows)
    if total > limits.EXTERNAL_BYTES:
        raise ModelError(f"its external data have {total} bytes, the limit is {limits.EXTERNAL_BYTES}; split the model")
    for file, rows in wanted.items():
        _read(file, rows)
    return total


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _read(file: Path, rows: list[tuple[_Range, onnx.TensorProto]]) -> None:
    try:
        with open_plain(file, follow=False) as stream:
            size = size_of(stream)
            total = sum(found.length for found, _ in rows)
            for found, tensor in rows:
                end = found.start + found.length
                if end > size:
                    raise ModelError(
                        f"tensor '{tensor.name}' needs the bytes {found.start} to {end} of '{file.name}', which has "
                        f"{size}: it is truncated or of another model; copy it again"
                    )
            if total > size:
                raise ModelError(
                    f"its tensors take {total} bytes of '{file.name}', which has {size}: their ranges overlap; save "
                    "each tensor once, as an initializer"
                )
            for found, tensor in rows:
                stream.seek(found.start)
                tensor.raw_data = stream.read(found.length)
                tensor.ClearField("data_location")
                del tensor.external_data[:]
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "which is not beside the model" if missing else f"which cannot be read: {error.strerror}"
        raise ModelError(f"tensor '{rows[0][1].name}' needs the file '{file.name}', {what}") from error


def _range(tensor: onnx.TensorProto, folder: Path) -> _Range:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = entries.get("location", "")
    try:
        target = (folder / place).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, too long, links in a circle
        raise ModelError(
            f"tensor '{tensor.name}' keeps its data in '{place}', which is not a valid path: {error}"
        ) from error
    if not place or _is_absolute(place) or not target.is_relative_to(folder):
        raise ModelError(
            f"tensor '{tensor.name}' keeps its data in '{place}', outside of the model's folder; this is refused. Save "
            "the model with its data beside it, at a relative path"
        )
    length = tensor_bytes(tensor)
    start, stated = (_number(tensor, entries, key, default) for key, default in (("offset", 0), ("length", length)))
    if stated != length or tensor.data_type == onnx.TensorProto.STRING:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} and type {kind} takes {length} bytes, its external "
            f"data have {stated}; the file is damaged, export it again"
        )
    return _Range(target, start, length)


def _is_absolute(place: str) -> bool:
    return PurePosixPath(place).is_absolute() or PureWindowsPath(place).is_absolute() or "\\" in place


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"tensor '{tensor.name}': the {key} of its external data is '{text[:40]}', no number of bytes")
    return int(text) if text else default


def _share(model: onnx.ModelProto, folder: Path) -> None:
    """Let the graph's initializers of the same bytes, type and shape be one, which all of their readers read."""
    graph = model.graph
    first: dict[tuple[_Range, int, tuple[int, ...]], str] = {}
    renamed: dict[str, str] = {}
    results = {value.name for value in graph.output}
    for tensor in filter(_is_external, graph.initializer):
        key = _range(tensor, folder), tensor.data_type, tuple(tensor.dims)
        if first.setdefault(key, tensor.name) != tensor.name and tensor.name not in results:
            renamed[tensor.name] = first[key]
    if not renamed:
        return
    for values in (graph.initializer, graph.input):
        for index in reversed([i for i, value in enumerate(values) if value.name in renamed]):
            del values[index]
    for inner in all_graphs(graph):
        for node in inner.node:
            for index, name in enumerate(node.input):
                if name in renamed:
                    node.input[index] = renamed[name]
