"""Text as windows of tokens: each predicts the next token at each of its places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.models.data.data_set import Data
from subbyte.models.data.register import register_data
from subbyte.models.data.split import TEST_SHARE, is_held_out
from subbyte.models.data.tokenizers import ByteTokenizer, Tokenizer, tokenizer_of
from subbyte.models.options import Count, Share


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of `context` tokens that follow each other, int64 [context]; the target has the next token of each."""

    def __init__(self, tokens: npt.NDArray[Any], context: int) -> None:
        self.tokens, self.context = torch.from_numpy(tokens), context

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.context)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([range(len(self))[index]])
        return inputs[0], targets[0]

    def batch(self, indices: Sequence[int] | slice) -> tuple[Tensor, Tensor]:
        """Windows and targets int64 [n, context]."""
        numbers = torch.arange(len(self))[indices] if isinstance(indices, slice) else torch.as_tensor(indices)
        window = self.tokens[numbers[:, None] * self.context + torch.arange(self.context + 1)].to(torch.int64)
        return window[:, :-1], window[:, 1:]


def text_data(
    name: str,
    parts: Sequence[Sequence[tuple[str, bytes]]],
    tokenizer: Tokenizer,
    context: int,
    preprocessing: Mapping[str, Any] | None = None,
) -> Data:
    """Language modelling of texts, each with a name for errors: those to train on and those held out.

    The texts of a part follow each other. Raises DataError for a part without one whole window.
    """
    windows = []
    for part, texts in zip(("training", "test"), parts, strict=True):
        tokens = [tokenizer.encode(text, where) for where, text in texts]
        windows.append(Windows(np.concatenate(tokens) if tokens else np.zeros(0, np.uint8), context))
        if not len(windows[-1]):
            raise DataError(
                f"data set '{name}': the {part} text has {len(windows[-1].tokens)} tokens in {len(texts)} files, too "
                f"few for one window of {context} and the token after it; give more text, or a smaller context."
            )
    return Data(
        name,
        windows[0],
        windows[1],
        shape=(context,),
        outputs=tokenizer.vocabulary,
        dtype="int64",
        task="language-modelling",
        task_options={"unit": "byte" if isinstance(tokenizer, ByteTokenizer) else "token"},
        preprocessing={"tokenizer": dict(tokenizer.description()), **(preprocessing or {})},
    )


@register_data(
    "text",
    summary="your own text: a file, or a folder of files",
    task="language-modelling",
    shape=("context",),
)
def text(
    path: Path,
    context: Count = 128,
    tokenizer: str | Callable[[str], Iterable[int]] = "bytes",
    vocabulary: int | None = None,
    suffix: str = ".txt",
    test_share: Share = TEST_SHARE,
) -> Data:
    """Text of `path`/train and `path`/test; or of the files of a folder, or of one file, a share of it held out.

    `tokenizer` is `bytes`, the path of a Hugging Face `tokenizer.json`, `package.module:name` or a function, which
    needs `vocabulary`. Of a folder, files are held out by the SHA-256 of their names; of one file, its end.
    """
    made = tokenizer_of(tokenizer, vocabulary)
    if path.is_file():
        content = _read(path, limits.TEXT_BYTES)
        cut = round(len(content) * (1 - test_share))
        while 0 < cut < len(content) and content[cut] & 0xC0 == 0x80:  # in a character
            cut -= 1
        parts = [[(f"{path}", content[:cut])], [(f"{path}", content[cut:])]]
    elif (path / "train").is_dir():
        parts = [_files(path / part, suffix) for part in ("train", "test")]
    else:
        found = _files(path, suffix)
        parts = [[one for one in found if is_held_out(_inside(path, one[0]), test_share) == part] for part in (0, 1)]
    return text_data("text", parts, made, context)


def _files(folder: Path, suffix: str) -> list[tuple[str, bytes]]:
    """All files of a folder with this suffix, sorted by name; raises DataError where there is none."""
    files = sorted(file for file in folder.rglob(f"*{suffix}") if file.is_file()) if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: no files '*{suffix}'; expected a folder of text files, or name another suffix.")
    left, found = limits.TEXT_BYTES, []
    for file in files:
        found.append((str(file), _read(file, left)))
        left -= len(found[-1][1])
    return found


def _inside(folder: Path, file: str) -> str:
    return Path(file).relative_to(folder).as_posix()


def _read(file: Path, most: int) -> bytes:
    try:
        return read_plain(file, most)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
