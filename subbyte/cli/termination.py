"""A command leaves no temporary files, also when it is ended: Ctrl-C, kill, a stopped service, a closed terminal."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def cleaned_up_on_termination() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP unwind, to the exit code of a shell (130, 143, 129); a second one ends at once.

    A signal that is ignored (nohup) or has a handler stays as it is: Python's for SIGINT, where it is not `__main__.py`
    that runs the command.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    click.echo(f"Ended by {signal.Signals(number).name}.", err=True)
    sys.exit(128 + number)


@contextmanager
def without_torch_cache() -> Iterator[None]:
    """Remove the folder for compiled kernels that importing torch creates in TMPDIR, and that no command uses.

    A folder set in the environment is kept.
    """
    try:
        folder = os.path.join(tempfile.gettempdir(), f"subbyte-{uuid.uuid4().hex}")
    except OSError:  # there is no temporary folder: what needs one raises an error
        folder = ""
    if not folder or os.environ.get(_TORCH_CACHE):
        yield
        return
    os.environ[_TORCH_CACHE] = folder  # torch creates it on import
    try:
        yield
    finally:
        os.environ.pop(_TORCH_CACHE, None)
        shutil.rmtree(folder, ignore_errors=True)
