"""From ONNX to a bundle: import, rewrite table, kernels, memory plan, emitters, targets. Names load on first use."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subbyte.tvm_kernels.compiler import CompileReport as CompileReport
    from subbyte.tvm_kernels.compiler import compile as compile
    from subbyte.tvm_kernels.explanation import Explanation as Explanation
    from subbyte.tvm_kernels.machines import Target as Target
    from subbyte.tvm_kernels.machines import all_targets as all_targets
    from subbyte.tvm_kernels.machines import get_target as get_target
    from subbyte.tvm_kernels.machines import register_target as register_target

if os.path.expanduser("~") == "~" and not os.environ.get("XDG_CACHE_HOME"):
    # The import of TVM fails in a process without a home folder, as a container's user may be: it names a cache there,
    # which a compilation never writes. In /dev/null no program can make one.
    os.environ["XDG_CACHE_HOME"] = os.devnull

_MODULES = {
    "CompileReport": "compiler",
    "compile": "compiler",
    "Explanation": "explanation",
    "Target": "machines",
    "all_targets": "machines",
    "get_target": "machines",
    "register_target": "machines",
}

__all__ = ["CompileReport", "Explanation", "Target", "all_targets", "compile", "get_target", "register_target"]


class _WithoutTorch(MetaPathFinder):
    """Finds no PyTorch in the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("the import of TVM needs no PyTorch", name=name)


@contextmanager
def _light_import() -> Iterator[None]:
    """Import TVM in less time and memory.

    It makes objects that all stay: to look for garbage among them costs a sixth of its time, and as much again at the
    end of the process, which frees them anyway. tvm_ffi imports PyTorch wherever it is installed, to take its tensors,
    of which a compilation has none: 190 MiB and as long as all the rest (torch 2.13 for CPUs, 2026).
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    collects, without_torch = gc.isenabled(), _WithoutTorch()
    gc.disable()
    sys.meta_path.insert(0, without_torch)
    try:
        yield
    finally:
        sys.meta_path.remove(without_torch)
        if collects:
            gc.enable()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'subbyte.tvm_kernels' has no attribute '{name}'")
    with _light_import():
        return getattr(import_module(f"subbyte.tvm_kernels.{_MODULES[name]}"), name)
