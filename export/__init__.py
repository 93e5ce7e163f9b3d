"""Checkpoint to standard ONNX: the exporter, and the tools that read its files.

Names are imported on first use, so that reading a file does not import torch. `subbyte.export` is both this package and
a function: `subbyte.export("runs/t", "t.onnx")` calls `export`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subbyte.export.baselines import float_baseline as float_baseline
    from subbyte.export.baselines import int8_baseline as int8_baseline
    from subbyte.export.engine import largest_accumulators as largest_accumulators
    from subbyte.export.engine import onnx_codes as onnx_codes
    from subbyte.export.engine import run_onnx as run_onnx
    from subbyte.export.exporter import ExportReport as ExportReport
    from subbyte.export.exporter import export as export
    from subbyte.export.inspection import Inspection as Inspection
    from subbyte.export.inspection import inspect as inspect
    from subbyte.export.onnx_file import load_onnx as load_onnx
    from subbyte.export.post_training import OnnxQuantization as OnnxQuantization
    from subbyte.export.post_training import quantize_onnx as quantize_onnx
    from subbyte.export.verify import Verification as Verification
    from subbyte.export.verify import torch_codes as torch_codes
    from subbyte.export.verify import torch_observations as torch_observations

_MODULES = {
    "ExportReport": "exporter",
    "Inspection": "inspection",
    "OnnxQuantization": "post_training",
    "Verification": "verify",
    "export": "exporter",
    "float_baseline": "baselines",
    "inspect": "inspection",
    "int8_baseline": "baselines",
    "largest_accumulators": "engine",
    "load_onnx": "onnx_file",
    "onnx_codes": "engine",
    "quantize_onnx": "post_training",
    "run_onnx": "engine",
    "torch_codes": "verify",
    "torch_observations": "verify",
}

__all__ = [
    "ExportReport",
    "Inspection",
    "OnnxQuantization",
    "Verification",
    "export",
    "float_baseline",
    "inspect",
    "int8_baseline",
    "largest_accumulators",
    "load_onnx",
    "onnx_codes",
    "quantize_onnx",
    "run_onnx",
    "torch_codes",
    "torch_observations",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'subbyte.export' has no attribute '{name}'")
    return getattr(import_module(f"subbyte.export.{_MODULES[name]}"), name)


class _CallablePackage(ModuleType):
    """Makes the package callable: importing it sets `subbyte.export`, which users call as a function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.export(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
