"""Run compiled models: bundle, session, benchmark, energy, reports. Needs NumPy (and rich to print).

Names load on first use, so that `import subbyte.runtime` costs nothing on a small device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subbyte.runtime import energy as energy
    from subbyte.runtime.benchmark import BenchResult, bench
    from subbyte.runtime.bundle import Bundle, open_bundle, write_bundle
    from subbyte.runtime.session import Session, load

__all__ = ["BenchResult", "Bundle", "Session", "bench", "energy", "load", "open_bundle", "write_bundle"]

_MODULES = {
    "BenchResult": "benchmark",
    "Bundle": "bundle",
    "Session": "session",
    "bench": "benchmark",
    "load": "session",
    "open_bundle": "bundle",
    "write_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "energy":
        return importlib.import_module("subbyte.runtime.energy")
    if name not in _MODULES:
        raise AttributeError(f"module 'subbyte.runtime' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"subbyte.runtime.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
