"""Reads ONNX files for the tools of this package, and writes ONNX files atomically."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from subbyte.dialect.function_calls import inline_foreign_functions
from subbyte.dialect.known_operators import NO_PRODUCTS, unknown_nodes
from subbyte.dialect.macs import MACS
from subbyte.dialect.walk import every_node
from subbyte.errors import ExportError
from subbyte.files import limits
from subbyte.files.output import write_file
from subbyte.onnx_files.checks import unknown_operators
from subbyte.onnx_files.loader import Source, naming, open_onnx


def load_onnx(source: Source) -> onnx.ModelProto:
    """The model of a file, read-only, with all functions inlined but those of the dialect.

    A model in memory is not checked as a file is. Raises UsageError and ModelError as `open_onnx`, and ModelError for
    operators that are unknown and have no body in the file.
    """
    if isinstance(source, onnx.ModelProto):
        return _normalised(source)
    file = open_onnx(source)
    with naming(file.path):
        return _normalised(file.model)


def _normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    bodies = {(function.domain, function.name) for function in model.functions}
    unknown = [node for node in unknown_nodes(every_node(model)) if (node.domain, node.op_type) not in bodies]
    if unknown:
        named = {f"{domain}.{name}" for domain, name in bodies}
        raise unknown_operators(unknown, "unknown operator", {*MACS, *NO_PRODUCTS, *named})
    return inline_foreign_functions(model)


def save_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> bytes:
    """Write the model through `subbyte.files.output`; returns the bytes written.

    Raises ExportError when the model is over 2 GB, WriteError when the folder is missing or the disk full.
    """
    target = Path(path)
    try:
        payload = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise ExportError(
            f"'{target}' would have over {limits.ONNX_BYTES} bytes, the limit of ONNX: {error}"
        ) from error
    if len(payload) > limits.ONNX_BYTES:
        raise ExportError(f"'{target}' would have {len(payload)} bytes, over the limit of {limits.ONNX_BYTES}")
    write_file(target, payload)
    return bytes(payload)
