"""Where a command prints: beside the file that it writes, never into it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from subbyte.output_file import is_stdout


@contextmanager
def printing_beside(output: Path | None) -> Iterator[None]:
    """Print to standard error where `output` is standard output itself, such as /dev/stdout."""
    if output is None or not is_stdout(output):
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
