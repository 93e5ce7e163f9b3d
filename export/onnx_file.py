"""Reading and writing ONNX files: one loader that trusts nothing, one writer that never leaves half a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import load_external_data_for_model

from subbyte.errors import ExportError, ModelError, UsageError
from subbyte.file_kinds import CHECKPOINT, ONNX, kind_of
from subbyte.function_calls import foreign_functions, inline_all_but_ours
from subbyte.output_file import write_file

MAXIMUM_BYTES = (1 << 31) - 1  # protobuf's own limit, and ours for a file with its external data

Model = str | os.PathLike[str] | onnx.ModelProto


def load_onnx(source: Model) -> onnx.ModelProto:
    """As `read_onnx`; where a function has a name of ours but not our body, all functions but ours are inlined."""
    model = read_onnx(source)
    return inline_all_but_ours(model) if foreign_functions(model) else model


def read_onnx(source: Model) -> onnx.ModelProto:
    """Read an ONNX file with its external data; a ModelProto is handed back as it is.

    Raises UsageError for a folder, ModelError for a file that is missing, truncated, not ONNX, over 2 GB, without nodes
    or outputs, in an opset that the installed onnx does not know, that fails the ONNX checker, or keeps data outside of
    its own folder.
    """
    if isinstance(source, onnx.ModelProto):
        return source
    path = Path(source)
    if path.is_dir():
        raise UsageError(_other(path))
    if not path.is_file():
        raise ModelError(f"there is no ONNX file '{path}'; export a checkpoint with `subbyte export` first")
    size = path.stat().st_size
    if size > MAXIMUM_BYTES:
        raise ModelError(f"'{path}' has {size} bytes; ONNX files end at {MAXIMUM_BYTES}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(_other(path)) from error
    if not model.graph.node:
        raise ModelError(_other(path))
    if not model.graph.output:
        raise ModelError(f"'{path}' has no outputs, so it would compute nothing; export it with its results as outputs")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"'{path}' is in opset {opset}; opsets up to {onnx.defs.onnx_opset_version()} are known to the installed "
            f"onnx {onnx.__version__}. Export it with one of them"
        )
    _load_external(model, path, size)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        node = node_on_cycle(model.graph)
        if node is not None:
            name = node.name or node.op_type
            raise ModelError(
                f"'{path}' has a cycle through node '{name}'; ONNX allows none, export it again"
            ) from error
        raise ModelError(f"'{path}' is not valid ONNX: {_first_line(error)}") from error
    return model


def _other(path: Path) -> str:
    """What to say of a file or folder that is not an ONNX model."""
    kind = kind_of(path)
    if kind is None or kind == ONNX:
        return f"'{path}' is not an ONNX file, or it is truncated, damaged or without nodes; copy or export it again"
    do = "export it first with `subbyte export`" if kind == CHECKPOINT else "expected a .onnx file"
    return f"'{path}' is not an ONNX file, it is {kind}; {do}"


def node_on_cycle(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """A node that needs its own result, by way of others or none; None where there is no cycle."""
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    left = [{maker[name] for name in node.input if name in maker} for node in graph.node]
    readers: list[list[int]] = [[] for _ in left]
    for index, parents in enumerate(left):
        for parent in parents:
            readers[parent].append(index)
    ready = [index for index, parents in enumerate(left) if not parents]
    while ready:
        done = ready.pop()
        for index in readers[done]:
            left[index].discard(done)
            if not left[index]:
                ready.append(index)
    at = next((index for index, parents in enumerate(left) if parents), None)
    if at is None:
        return None
    seen: set[int] = set()
    while at not in seen:  # what is left is on a cycle or behind one: its inputs lead there
        seen.add(at)
        at = min(left[at])
    found: onnx.NodeProto = graph.node[at]
    return found


def save_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> bytes:
    """Write the model as `subbyte.output_file` does; returns what was written.

    Raises ExportError when the model is over 2 GB, WriteError when the folder is missing or the disk full.
    """
    target = Path(path)
    try:
        payload = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ExportError(f"'{target}' would have over {MAXIMUM_BYTES} bytes, the limit of ONNX: {error}") from error
    if len(payload) > MAXIMUM_BYTES:
        raise ExportError(f"'{target}' would have {len(payload)} bytes, over the limit of {MAXIMUM_BYTES}")
    write_file(target, payload)
    return bytes(payload)


def _load_external(model: onnx.ModelProto, path: Path, size: int) -> None:
    folder = path.parent.resolve()
    total = size
    files: set[Path] = set()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = entries.get("location", "")
        target = (folder / place).resolve()
        inside = place and target.is_relative_to(folder) and not _absolute(place)
        if not inside:
            raise ModelError(
                f"'{path}': tensor '{tensor.name}' keeps its data in '{place}', outside of the model's folder; "
                f"this is refused. Save the model with its data beside it"
            )
        if not target.is_file():
            raise ModelError(
                f"'{path}': tensor '{tensor.name}' needs the file '{place}', which is not beside the model"
            )
        if target not in files:
            files.add(target)
            total += target.stat().st_size
    if total > MAXIMUM_BYTES:
        raise ModelError(f"'{path}' and its data have {total} bytes; the limit is {MAXIMUM_BYTES}")
    if files:
        try:
            load_external_data_for_model(model, str(folder))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise ModelError(f"'{path}': its external data cannot be read: {_first_line(error)}") from error


def _absolute(place: str) -> bool:
    return PurePosixPath(place).is_absolute() or PureWindowsPath(place).is_absolute() or "\\" in place


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers and attributes, of the graph, its subgraphs and its functions."""
    yield from _graph_tensors(model.graph)
    for body in model.functions:
        for node in body.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors)
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graph_tensors(graph)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
