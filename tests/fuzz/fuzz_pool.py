"""The same cases of the C core under the thread sanitizer, which sees two threads at one byte."""

from __future__ import annotations

from pathlib import Path

from fuzz_core import Program, case

__all__ = ["case", "prepare"]


def prepare(folder: Path) -> Program:
    """Builds the program."""
    return Program(folder, ("-fsanitize=thread",))
