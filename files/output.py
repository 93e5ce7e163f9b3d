"""The one writer of files: a name appears with its whole content, or not at all.

A plain file is written under a random name in the same folder, synced, and renamed, by the umask, and never more open
than the file that it replaces. Links are followed: the file that they name is replaced. Other than plain files (a pipe,
a device, an open file such as /dev/stdout) are written into, once all of the content is there.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from subbyte.errors import MORE_MEMORY, UsageError, WriteError
from subbyte.files.plain import not_read

_MOST_LINKS = 40  # in a row, as Linux has it
_CHUNK = 1 << 20  # bytes
_TRIED = 1 << 12  # bytes that a disk with any room takes

_TO_DO = {
    errno.ENOSPC: "the disk is full; free some space, or name another place",
    errno.EDQUOT: "the quota of the disk is used up; free some space, or name another place",
    errno.EFBIG: "it is larger than a file may be here (ulimit -f, or the file system); name another place",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this system; close other programs",
    errno.ENOMEM: f"it takes more memory than there is; {MORE_MEMORY}",
    errno.EBUSY: "it is in use, or a mount point of its own; name another place",
    errno.EROFS: "the disk is read-only; name another place",
    errno.EACCES: "no permission; name another place, or change who may write there",
    errno.EPERM: "it is not permitted; name another place, or change who may write there",
    errno.ENOENT: "its folder is not there, or was deleted; make it first",
    errno.EEXIST: "there is a file of that name; name another place",
    errno.ENOTDIR: "what should be its folder is none; name another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links lead in a circle; name another place",
    errno.EPIPE: "its reader went away before all of it was read; start the reader again",
    errno.ENXIO: "nothing reads from it; start the reader first",
}


@contextmanager
def output_file(path: str | os.PathLike[str], *, executable: bool = False) -> Iterator[BinaryIO]:
    """A file to write and seek in, which appears as `path` when the context ends well; else nothing is left of it.

    Until then its content is at its `name`. Raises WriteError for a full or read-only disk and the like,
    UsageError for a folder and for a link that another user planted.
    """
    path = Path(path)
    with _explained(path):
        target, plain = _target(path)
        folder = target.parent if plain else _temporary_folder()
        temporary = folder / f".subbyte-{os.urandom(8).hex()}.tmp"
        mode = (0o777 if executable else 0o666) if plain else 0o600
        try:
            with open(temporary, "x+b", opener=lambda name, flags: _create(name, flags, mode)) as file:
                yield file
                file.flush()
                if plain:
                    _keep_closed(file.fileno(), target)
                    os.fsync(file.fileno())
                else:
                    _pour(file, target)
            if plain:
                os.replace(temporary, target)
                _sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: bytes, *, executable: bool = False) -> None:
    """Write `content` to `path`; raises as `output_file`."""
    with output_file(path, executable=executable) as file:
        file.write(content)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, if they are not there; raises WriteError."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def checked_output(
    path: str | os.PathLike[str] | None, what: str, *inputs: str | os.PathLike[str] | None
) -> Iterator[None]:
    """Ask, before any work, whether `path` can be written, and refuse in here to read a file that it would replace.

    `what` names it in the message, such as "--output"; None: there is no output. `inputs` are the files that are known
    to be read: they are compared at once. What cannot be known before is an error of the writing.
    Raises UsageError for a place that cannot be, WriteError for a full or read-only disk and the like.
    """
    if path is None:
        yield
        return
    path = Path(path)
    called = f"{what} {path}"
    with _explained(path, what):
        target, plain = _target(path, called)
        if not path.parent.is_dir():
            raise UsageError(f"{called}: there is no folder '{path.parent}'; make it first")
        for read in inputs:
            if read is not None and os.path.exists(read) and target.exists() and target.samefile(read):
                raise UsageError(f"{called}: that is a file this command reads; name another one")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if plain:
            _try(target.parent)
    with not_read(target, called):
        yield


def check_output_folder(path: str | os.PathLike[str], what: str) -> None:
    """As `checked_output`, for a folder that is there or will be made with its parents."""
    path = Path(path)
    with _explained(path, what):
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not there.is_dir():
            raise UsageError(f"{what} {path}: '{there}' is a file; name a folder")
        _try(there)


def check_temporary(least: int) -> None:
    """Raise WriteError unless the folder of temporary files can be written and has `least` bytes free."""
    from shutil import disk_usage

    try:
        folder = _temporary_folder()
        free = disk_usage(folder).free
    except OSError as error:
        raise WriteError(f"no folder for temporary files ({error}); set TMPDIR to one that can be written") from error
    if free < least:
        raise WriteError(
            f"the folder of temporary files, '{folder}', has {free:,} bytes free, this takes at least {least:,}; free "
            "some space, or set TMPDIR to another folder"
        )


def what_to_do(error: OSError) -> str | None:
    """What is wrong with a place or a limit of the process, and what to do; None for errors that tell neither."""
    return _TO_DO.get(error.errno or 0)


_OF_ZIG = {
    errno.ENOSPC: "NoSpaceLeft",
    errno.EDQUOT: "DiskQuota",
    errno.EFBIG: "FileTooBig",
    errno.ENOMEM: "OutOfMemory",
    errno.EMFILE: "ProcessFdQuotaExceeded",
}


def what_to_do_of_tool(status: int, said: str) -> str | None:
    """The same of a tool that was run: by its exit status, or by what it said, in the words of the C library or Zig."""
    too_large = getattr(signal, "SIGXFSZ", None)
    if too_large is not None and (status == -too_large or str(signal.strsignal(too_large)) in said):
        return _TO_DO[errno.EFBIG]
    return next(
        (_TO_DO[number] for number, name in _OF_ZIG.items() if os.strerror(number) in said or name in said), None
    )


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether what is written to `path` comes out where this process prints."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(1)) and not _target(Path(path))[1]
    except (OSError, UsageError):
        return False


@contextmanager
def _explained(path: Path, what: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        known = what_to_do(error) or error.strerror or str(error)
        raise WriteError(f"{what} {path}: {known}" if what else f"cannot write '{path}': {known}") from error


def _temporary_folder() -> Path:
    from tempfile import gettempdir  # slow to import, and whoever runs a bundle never comes here

    return Path(gettempdir())


def _target(path: Path, called: str = "") -> tuple[Path, bool]:
    """The path after its links are resolved, and whether it is (or will be) a plain file, which a rename replaces.

    `called` is its name in a message, if that is not the path.
    """
    if "\0" in str(path):
        raise UsageError(f"the name {str(path)!r} has a null byte; choose another one")
    for _ in range(_MOST_LINKS):
        if os.path.realpath(path.parent).startswith("/proc/"):  # of an open file: its name may be gone, or a pipe's
            return path, False
        if not path.is_symlink():
            break
        _refuse_planted(path)
        path = path.parent / path.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if path.is_dir():
        raise UsageError(f"{called or path}: that is a folder; name a file in it")
    return path, not path.exists() or path.is_file()


def _refuse_planted(link: Path) -> None:
    """Linux's rule of protected_symlinks, which holds for opening a file, not for reading where a link leads."""
    folder, owner = link.parent.stat(), link.lstat().st_uid
    anyones = stat.S_ISVTX | stat.S_IWOTH
    if folder.st_mode & anyones == anyones and hasattr(os, "geteuid") and owner not in (os.geteuid(), folder.st_uid):
        raise UsageError(f"{link}: that is a link of another user, in a folder that all may write; name another place")


def _create(name: str, flags: int, mode: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), mode)


def _keep_closed(descriptor: int, target: Path) -> None:
    """Take from a new file the permissions that the file it replaces did not give."""
    if hasattr(os, "fchmod") and target.exists():
        given = stat.S_IMODE(os.fstat(descriptor).st_mode)
        kept = given & stat.S_IMODE(target.stat().st_mode)
        if kept != given:  # some disks have one mode for all files, and refuse to set it
            os.fchmod(descriptor, kept)


def _pour(file: BinaryIO, target: Path) -> None:
    """Copy all of `file` into `target`; an open file of this process continues after what was printed."""
    file.seek(0)
    if target.name.isdigit() and os.path.realpath(target.parent) == f"/proc/{os.getpid()}/fd":
        if sys.stdout is not None:
            sys.stdout.flush()
        descriptor = os.dup(int(target.name))
    else:
        descriptor = os.open(target, os.O_WRONLY)
    with open(descriptor, "wb") as into:
        while chunk := file.read(_CHUNK):
            into.write(chunk)


def _try(folder: Path) -> None:
    """Raise OSError unless a file can be made in `folder` and holds something."""
    temporary = folder / f".subbyte-{os.urandom(8).hex()}.tmp"
    try:
        with open(temporary, "xb", opener=lambda name, flags: _create(name, flags, 0o600)) as file:
            file.write(bytes(_TRIED))
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut; where a folder cannot be opened or synced (Windows, some network disks), it
    is up to the system."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
