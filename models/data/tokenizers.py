"""How a text becomes tokens: its bytes, a `tokenizer.json` of Hugging Face, or any function of your own."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError, MissingDependencyError, UsageError, one_line
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.models.data.named_object import import_named, is_object_name

Tokens = npt.NDArray[np.int64]  # [T]
BYTES = 256


class Tokenizer(ABC):
    """Makes tokens of a text."""

    vocabulary: int  # tokens are 0...vocabulary - 1

    @abstractmethod
    def encode(self, text: bytes, where: str) -> npt.NDArray[Any]:
        """Tokens [T] of the text of file `where`; raises DataError for a text that it cannot take."""

    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """What it is, as JSON: it travels with the checkpoint."""


class ByteTokenizer(Tokenizer):
    """Every byte is a token."""

    vocabulary = BYTES

    def encode(self, text: bytes, where: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become replacement characters."""
        return bytes(tokens).decode("utf-8", "replace")

    def description(self) -> Mapping[str, Any]:
        return {"kind": "bytes"}


class FunctionTokenizer(Tokenizer):
    """Any function from a text to whole numbers below `vocabulary`."""

    def __init__(self, function: Callable[[str], Iterable[int]], vocabulary: int) -> None:
        self.function, self.vocabulary = function, vocabulary

    def encode(self, text: bytes, where: str) -> Tokens:
        tokens = np.asarray(list(self.function(_decoded(text, where))))
        if tokens.size and (tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= self.vocabulary):
            raise DataError(
                f"{where}: the tokenizer gives {tokens.dtype} from {tokens.min()} to {tokens.max()}, expected whole "
                f"numbers from 0 to {self.vocabulary - 1}; give its vocabulary."
            )
        return tokens.astype(np.int64)

    def description(self) -> Mapping[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"kind": "function", "name": f"{self.function.__module__}:{name}", "vocabulary": self.vocabulary}


class FileTokenizer(FunctionTokenizer):
    """The tokenizer of a `tokenizer.json`, without the special tokens that it would add."""

    def __init__(self, file: Path) -> None:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise MissingDependencyError("tokenizers", "text") from error
        try:
            content = read_plain(file, limits.TOKENIZER_BYTES)
            reader = Reader.from_buffer(content)
        except Exception as error:  # the reader raises Exception itself
            raise DataError(f"{file}: no tokenizer.json ({one_line(error)}); save the tokenizer again.") from error
        super().__init__(lambda text: reader.encode(text, add_special_tokens=False).ids, reader.get_vocab_size())
        self.file, self.sha256 = file.name, hashlib.sha256(content).hexdigest()

    def description(self) -> Mapping[str, Any]:
        return {
            "kind": "tokenizer.json",
            "file": self.file,
            "sha256": self.sha256,
            "vocabulary": self.vocabulary,
        }


def tokenizer_of(given: str | Callable[[str], Iterable[int]], vocabulary: int | None) -> Tokenizer:
    """The tokenizer that an option says: `bytes`, the path of a `tokenizer.json`, `package.module:name`, a function.

    A function needs the size of its vocabulary. Raises UsageError, DataError, MissingDependencyError.
    """
    if isinstance(given, str) and not is_object_name(given):
        if vocabulary is not None:
            raise UsageError(f"the tokenizer '{given}' knows its vocabulary; leave `vocabulary` out.")
        return ByteTokenizer() if given == "bytes" else FileTokenizer(Path(given))
    function = import_named(given) if isinstance(given, str) else given
    if not callable(function) or vocabulary is None or vocabulary < 1:
        raise UsageError(
            f"the tokenizer is a {type(function).__name__} with vocabulary {vocabulary}, expected a function from a "
            "text to tokens, and how many different tokens it gives (vocabulary=...)."
        )
    return FunctionTokenizer(function, vocabulary)


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8; convert the file, or take the bytes.") from error
