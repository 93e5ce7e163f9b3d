"""Opens input files. A pipe or a device may block or never end: only plain files are opened.

What is refused raises OSError, as a file that is missing does, with words for whoever reports it. What is to be
replaced by an output is not read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from subbyte.errors import UsageError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Without O_NONBLOCK the opening of a pipe waits for its writer; for a plain file it means nothing.
_FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _flag, 0)

_outputs: ContextVar[tuple[tuple[os.stat_result, str], ...]] = ContextVar("outputs", default=())


@contextmanager
def not_read(output: Path, called: str) -> Iterator[None]:
    """While this lasts, whoever opens the file at `output`, by whatever name, gets a UsageError that names `called`."""
    found = (os.stat(output), called) if output.exists() else None
    token = _outputs.set((*_outputs.get(), found) if found else _outputs.get())
    try:
        yield
    finally:
        _outputs.reset(token)


def open_plain(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """A plain file, to read bytes from; without `follow` a link in its last part is not followed.

    Raises OSError as `open` does, and for a folder, pipe, socket or device; UsageError within `not_read`.
    """

    def opened(name: str, _: int) -> int:
        handle = os.open(name, _FLAGS if follow else _FLAGS | getattr(os, "O_NOFOLLOW", 0))
        try:
            state = os.fstat(handle)
            mode = state.st_mode
            if not stat.S_ISREG(mode):
                kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "of another kind")
                number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL  # the first makes an IsADirectoryError
                raise OSError(number, f"it is {kind}, not a plain file", str(path))
            for output, called in _outputs.get():
                if os.path.samestat(state, output):
                    raise UsageError(f"{called}: that is a file this command reads ('{path}'); name another one")
        except BaseException:
            os.close(handle)
            raise
        return handle

    # By an opener: with os.fdopen the exception of a signal handler could close the descriptor twice.
    return open(path, "rb", opener=opened)


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_plain(path: str | Path, most: int) -> bytes:
    """The bytes of a plain file; raises OSError as `open_plain`, and for one of more than `most` bytes."""
    with open_plain(path) as file:
        size = size_of(file)
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"it has {max(size, len(content))} bytes, at most {most} are read", str(path))
    return content
