"""From ONNX to a bundle: import, rewrite table, kernels, memory plan, emitters, targets. Names load on first use."""

from __future__ import annotations

import atexit
import gc
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subbyte.tvm_kernels.compiler import CompileReport as CompileReport
    from subbyte.tvm_kernels.compiler import compile as compile
    from subbyte.tvm_kernels.explanation import Explanation as Explanation
    from subbyte.tvm_kernels.targets import Target as Target
    from subbyte.tvm_kernels.targets import all_targets as all_targets
    from subbyte.tvm_kernels.targets import get_target as get_target
    from subbyte.tvm_kernels.targets import register_target as register_target

if os.path.expanduser("~") == "~" and not os.environ.get("XDG_CACHE_HOME"):
    # The import of TVM fails in a process without a home folder, as a container's user may be: it names a cache there,
    # which a compilation never writes. In /dev/null no program can make one.
    os.environ["XDG_CACHE_HOME"] = os.devnull

_HOMES = {
    "CompileReport": "compiler",
    "compile": "compiler",
    "Explanation": "explanation",
    "Target": "targets",
    "all_targets": "targets",
    "get_target": "targets",
    "register_target": "targets",
}

__all__ = ["CompileReport", "Explanation", "Target", "all_targets", "compile", "get_target", "register_target"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'subbyte.tvm_kernels' has no attribute '{name}'")
    # The import of TVM makes objects that all stay: to look for garbage among them costs a sixth of its time, and as
    # much again at the end of the process, which frees them anyway.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    collects = gc.isenabled()
    gc.disable()
    try:
        return getattr(import_module(f"subbyte.tvm_kernels.{_HOMES[name]}"), name)
    finally:
        if collects:
            gc.enable()
