"""The loader of ONNX files, for export, inspect, compile, check and golden runs. It does not trust their content.

A file is read once and passed on as `OnnxFile`, because the content at its path may change. files/limits.py has the
limits, checks.py the checks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from google.protobuf.message import Error as ProtobufError

from subbyte.errors import MORE_MEMORY, ModelError, SubbyteError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.kinds import BUNDLE, CHECKPOINT, ONNX, kind_of
from subbyte.files.plain import open_plain, size_of
from subbyte.onnx_files.checks import check_content, check_graph
from subbyte.onnx_files.external_data import load_external

if TYPE_CHECKING:
    from subbyte.dialect.state import State


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A model that was checked: valid ONNX, its nodes sorted, its data in memory. It is not to be changed."""

    model: onnx.ModelProto
    path: Path | None  # None: made in memory
    content: _Content | None
    external_bytes: int = 0  # of the data that it keeps in other files
    # Of a file that is compiled: its states with their initial values, which its model does not have as initializers.
    states: Mapping[State, npt.NDArray[Any]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the file itself, without external data."""
        return self.model.ByteSize() if self.content is None else self.content.nbytes

    @cached_property
    def sha256(self) -> str:
        """Of the file itself; of a model in memory, of its serialized form."""
        if self.content is not None:
            return self.content.sha256
        return hashlib.sha256(self.model.SerializeToString()).hexdigest()

    def of_model(self, model: onnx.ModelProto) -> OnnxFile:
        """The same file, size and hash, with a model that was made of its own."""
        return self if model is self.model else replace(self, model=model, content=_Content(self.nbytes, self.sha256))


@dataclass(frozen=True)
class _Content:
    nbytes: int
    sha256: str


Source = str | os.PathLike[str] | onnx.ModelProto | OnnxFile


def open_onnx(source: Source) -> OnnxFile:
    """Load and check a file, or a copy of a model in memory; an OnnxFile is handed back.

    Raises UsageError for a folder or a file that is missing, and ModelError, which names the file, for one that is not
    ONNX, is truncated, damaged, cyclic, over a limit, of an unknown opset or operator of ONNX, or keeps data outside of
    its own folder.
    """
    if isinstance(source, OnnxFile):
        return source
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        _check(model, None)
        return OnnxFile(model, None, None)
    path = Path(source)
    model, content = _parsed(path)
    return OnnxFile(model, path, content, _check(model, path))


def _check(model: onnx.ModelProto, path: Path | None) -> int:
    """The checks, with the external data brought in between; their bytes."""
    with naming(path):
        check_content(model)
        external_bytes = load_external(model, None if path is None else path.parent)
        check_graph(model)
    return external_bytes


# What protobuf, NumPy and ONNX raise on fields that no valid file has.
_DAMAGE = (
    *(TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError),
    ProtobufError,
)


@contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Let a ModelError name the file that is read, and what only a damaged file raises become one."""
    try:
        yield
    except SubbyteError as error:
        if path is None or not isinstance(error, ModelError):
            raise
        raise ModelError(f"'{path}': {error}") from error
    except (*_DAMAGE, MemoryError) as error:
        where = "the model" if path is None else f"'{path}'"
        text = one_line(error)
        if isinstance(error, MemoryError):  # of a file within the limits: the process may have less
            raise ModelError(f"{where} takes more memory than there is ({text}); {MORE_MEMORY}") from error
        raise ModelError(f"{where} cannot be read ({type(error).__name__}: {text}); the file is damaged") from error


def _parsed(path: Path) -> tuple[onnx.ModelProto, _Content]:
    if path.is_dir():
        raise UsageError(_other(path))
    try:
        with open_plain(path) as file:
            size = size_of(file)
            if size > limits.ONNX_BYTES:
                raise ModelError(
                    f"'{path}' has {size} bytes; an ONNX file holds at most {limits.ONNX_BYTES}: keep weights as "
                    "external data"
                )
            data = file.read(size)
    except FileNotFoundError as error:
        raise UsageError(f"there is no ONNX file '{path}'; `subbyte export` makes one of a checkpoint") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"'{path}' cannot be read: {reason}; give the path of an ONNX file") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelError(_other(path)) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(_other(path))
    return model, _Content(len(data), hashlib.sha256(data).hexdigest())


def _other(path: Path) -> str:
    """What to say of a file or folder that is not an ONNX model."""
    kind = kind_of(path)
    if kind is None or kind == ONNX:
        return f"'{path}' is not an ONNX file, or it is truncated or damaged; copy or export it again"
    do = {
        BUNDLE: "compiled already: `subbyte run` and `bench` take it",
        CHECKPOINT: f"export it first: `subbyte export {path} -o model.onnx`",
    }.get(kind, "expected a .onnx file")
    return f"'{path}' is not an ONNX file, it is {kind}{': ' if kind == BUNDLE else '; '}{do}"
