"""Where a command prints: beside the file that it writes, never into it; and what is said where it cannot print."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any

import click

from subbyte.errors import UsageError, WriteError
from subbyte.files.output import is_stdout

_UNPRINTED = {
    errno.EPIPE: "the reader of standard output closed it",
    errno.ENOSPC: "standard output cannot be written, the disk is full; free some space, or redirect it",
    errno.EFBIG: "standard output cannot be written, the file is too large (ulimit -f); redirect it",
    errno.EIO: "standard output cannot be written, its terminal was closed; redirect it",
}


class _PrintError(OSError):
    pass


class _Raw(FileIO):
    """Standard output, whose failures are told from those of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _PrintError(error.errno, error.strerror) from error


@contextmanager
def printing_beside(output: Path | None) -> Iterator[None]:
    """Print to standard error where `output` is standard output itself, such as /dev/stdout."""
    if output is None or not is_stdout(output):
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def standard_output() -> Iterator[None]:
    """Print any text on any terminal; where nothing can be printed, one error and its exit code, as for a command."""
    _open_what_is_closed()
    if sys.stdout is None:
        click.echo("error: standard output is closed; redirect it, such as > /dev/null", err=True)
        sys.exit(UsageError.exit_code)
    with redirect_stdout(_any_text(sys.stdout)):
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except _PrintError as error:
            click.echo(f"error: {unprinted(error)}", err=True)
            sys.exit(WriteError.exit_code)


def _any_text(stream: Any) -> Any:
    """`stream` with escapes for what its terminal has no letter for: names from files may hold anything."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # the same under python -u
    if type(raw) is not FileIO:  # of a test, or a Windows console, which has all letters
        return stream
    stream.flush()
    written = BufferedWriter(_Raw(raw.fileno(), "wb", closefd=False))
    by_line = stream.line_buffering or raw is buffer
    return TextIOWrapper(written, stream.encoding, "backslashreplace", line_buffering=by_line)


def unprinted(error: BaseException) -> WriteError | None:
    """What to say of an error of printing, after which nothing is printed any more; None for another error."""
    if not isinstance(error, _PrintError):
        return None
    nowhere = os.open(os.devnull, os.O_WRONLY)  # else what is left in the buffer fails again at the end
    os.dup2(nowhere, 1)
    os.close(nowhere)
    known = _UNPRINTED.get(error.errno or 0, f"standard output cannot be written, {error.strerror}; redirect it")
    return WriteError(known)


def _open_what_is_closed() -> None:
    """Else the next file that is opened gets the number of standard output, and what a library prints."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
