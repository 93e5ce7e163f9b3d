"""Files that commands write: their place is checked before any work, and they appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from subbyte.errors import SubbyteError, UsageError


def check_place(path: Path | None, option: str, *inputs: Path | None) -> None:
    """Raise UsageError when `path`, given as `option`, cannot be written: no folder for it, a folder itself, an input.

    `inputs` are the files that the command reads: none of them may be replaced.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder '{path.parent}'; make it first")
    if path.is_dir():
        raise UsageError(f"{option} {path}: that is a folder; name a file in it")
    for read in inputs:
        if read is not None and path.resolve() == read.resolve():
            raise UsageError(f"{option} {path}: that is a file this command reads; name another one")


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, which then replaces it; a failure leaves neither behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        raise SubbyteError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
