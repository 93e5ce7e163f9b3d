"""LLVM's code generation in a forked child: on an error (an intrinsic that the target lacks) LLVM aborts.

The object is written to memory, not to a disk that may be full, which would be another abort.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from subbyte.errors import CompileError, WriteError
from subbyte.files.output import what_to_do_of_tool

_one_at_a_time = threading.Lock()  # no other thread of this process may be inside of LLVM while it forks


def object_bytes(module: Any, what: str) -> bytes:
    """The object file of a built LLVM module; raises CompileError, naming `what`, with what LLVM said as it died,
    WriteError where it had no room."""
    if not hasattr(os, "fork") or not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="subbyte-") as folder:
            path = Path(folder) / "kernels.o"
            module.write_to_file(str(path), "o")
            return path.read_bytes()
    code, said = os.memfd_create("object", os.MFD_CLOEXEC), os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        status = _in_a_child(module, code, said)
        if status:
            text = _content(said).decode("utf-8", "replace").strip()
            known = what_to_do_of_tool(status, text)
            if known is not None:
                raise WriteError(f"LLVM could not write the object file of {what} into memory: {known}")
            lines = text.splitlines()
            died = f"was killed by {signal.Signals(-status).name}" if status < 0 else "failed"
            raise CompileError(f"LLVM {died} on {what}: {lines[0] if lines else 'it gave no reason'}")
        return _content(code)
    finally:
        os.close(code)
        os.close(said)


def _in_a_child(module: Any, code: int, said: int) -> int:
    """The exit status of a child that writes the object to `code` and its errors to `said`; negative: of a signal."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child only runs LLVM
        child = os.fork()
        if child == 0:
            status = 1
            try:
                faulthandler.disable()
                os.dup2(said, 2)
                _end_without_destructors()
                module.write_to_file(f"/proc/self/fd/{code}", "o")
                status = 0
            except BaseException as error:
                os.write(said, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(status)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise


def _end_without_destructors() -> None:
    """Let exit(), which LLVM calls where it gives up, end this process at once.

    The destructors of its thread would wait for threads that the parent alone has, TVM's pool. They run in the order
    of registration, last first: the last is _exit(1) itself.
    """
    library = ctypes.CDLL(None)
    register = getattr(library, "__cxa_thread_atexit_impl", None)  # glibc's
    if register is not None:
        end = ctypes.cast(library._exit, ctypes.c_void_p)
        register(end, ctypes.c_void_p(1), end)


def _content(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()
