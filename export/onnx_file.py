"""Models of files with our functions alone, and one writer of ONNX files, that never leaves half a file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from subbyte import limits
from subbyte.dialect.function_calls import ENGINES_OWN, STANDARD_DOMAINS, foreign_functions, inline_all_but_ours
from subbyte.dialect.names import DOMAIN
from subbyte.errors import ExportError, ModelError
from subbyte.onnx_checks import unknown_operator
from subbyte.onnx_file import Source, open_onnx
from subbyte.onnx_walk import every_node
from subbyte.output_file import write_file


def load_onnx(source: Source) -> onnx.ModelProto:
    """The model of a file, not to be changed: where a function has a name of ours but not our body, all are inlined.

    A model in memory is taken as it is. Raises UsageError and ModelError as `open_onnx`, and ModelError for an operator
    of a domain that no engine has and the file gives no body: it cannot be run, nor its products counted.
    """
    model = source if isinstance(source, onnx.ModelProto) else open_onnx(source).model
    _refuse_unknown(model)
    return inline_all_but_ours(model) if foreign_functions(model) else model


def _refuse_unknown(model: onnx.ModelProto) -> None:
    known = {(function.domain, function.name) for function in model.functions}
    for node in every_node(model):
        of_engines = node.domain in (*STANDARD_DOMAINS, DOMAIN) or node.domain.startswith(ENGINES_OWN)
        if not of_engines and (node.domain, node.op_type) not in known:
            near = {name for domain, name in known if domain == node.domain}
            raise ModelError(unknown_operator(node, f"unknown operator {node.domain}.{node.op_type}", near))


def save_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> bytes:
    """Write the model as `subbyte.output_file` does; returns what was written.

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
