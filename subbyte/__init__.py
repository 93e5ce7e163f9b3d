"""subbyte: networks trained below eight bits, from a PyTorch checkpoint to the machine they run on.

    import subbyte

    run = subbyte.train("resnet8", data="digits", scheme="ternary", epochs=15, out="runs/t")
    subbyte.export(run.folder, "t.onnx")            # checked against torch and onnxruntime
    subbyte.compile("t.onnx", "t.subbyte", target="host")
    with subbyte.load("t.subbyte") as session:
        logits = session.run(images)                # float32 [1, 1, 8, 8] to float32 [1, 10]
    print(subbyte.bench("t.subbyte"))

Every name is imported when it is first used: `import subbyte` alone costs nothing, and a device that only runs bundles
needs no torch, onnx or tvm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subbyte.export import export as export
    from subbyte.judge.check import check as check
    from subbyte.models.post import quantize as quantize
    from subbyte.models.train.loop import train as train
    from subbyte.runtime import bench as bench
    from subbyte.runtime import load as load
    from subbyte.tvm_kernels import compile as compile

__version__ = "0.2.0"

# name -> (module, extra that installs what it needs)
_PUBLIC = {
    "train": ("subbyte.models", "train"),
    "quantize": ("subbyte.models.post", "train"),
    "export": ("subbyte.export", "export"),
    "compile": ("subbyte.tvm_kernels", "compile"),
    "load": ("subbyte.runtime", ""),
    "bench": ("subbyte.runtime", ""),
    "check": ("subbyte.judge.check", "all"),
}

__all__ = ["__version__", "bench", "check", "compile", "export", "load", "quantize", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'subbyte' has no attribute '{name}'")
    module, extra = _PUBLIC[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("subbyte"):
            raise
        from subbyte.errors import MissingDependencyError

        raise MissingDependencyError(error.name, extra) from error
