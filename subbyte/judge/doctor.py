"""What this machine has: versions, CPU features, toolchains, energy meters; what is missing, and how to get it."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import metadata

from subbyte import __version__


@dataclass(frozen=True)
class Finding:
    """One thing looked for: `found` describes it, or is None; `remedy` says how to get it."""

    what: str
    found: str | None
    remedy: str = ""


# distribution -> the extra that brings it
PACKAGES = {
    "numpy": "",
    "click": "",
    "rich": "",
    "torch": "train",
    "lightning": "train",
    "safetensors": "train",
    "scikit-learn": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "apache-tvm": "compile",
    "apache-tvm-ffi": "compile",
    "ziglang": "compile",
    "zeus": "energy",
}


def examine() -> dict[str, list[Finding]]:
    """Findings by section, in the order to show them."""
    return {"Versions": versions(), "CPU": cpu(), "Toolchains": toolchains(), "Energy meters": meters()}


def versions() -> list[Finding]:
    """This Python, subbyte, and every package that some part of it uses."""
    rows = [Finding("subbyte", __version__), Finding("Python", f"{sys.version.split()[0]} on {platform.platform()}")]
    for name, extra in PACKAGES.items():
        try:
            found: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        rows.append(Finding(name, found, f"pip install 'subbyte[{extra}]'" if extra else "pip install subbyte"))
    return rows


def cpu() -> list[Finding]:
    """The instruction sets that our kernels ask for."""
    from subbyte.runtime.host import cpu_features, cpu_name, usable_cores

    has = cpu_features()
    wanted = {
        "avx512vnni": "8-bit dot products: int8, int4, ternary, pow2 at full speed",
        "avx512vpopcntdq": "population count on vectors: binary at full speed",
        "avx512bw": "512-bit kernels; without it every format runs on the slower 256-bit ones",
        "avx2": "256-bit kernels; without it every format runs on the portable ones, the slowest",
    }
    rows = [Finding("CPU", f"{cpu_name()}, {usable_cores()} usable cores")]
    if platform.machine() in ("x86_64", "AMD64"):
        for name, use in wanted.items():
            rows.append(Finding(f"{name}: {use}", "yes" if name in has else None, "a CPU that has it"))
    return rows


def toolchains() -> list[Finding]:
    """Compilers and emulators for every target."""
    try:
        from subbyte.tvm_kernels.installed_tools import examine_toolchains
    except ModuleNotFoundError:
        return [Finding("compiler (apache-tvm)", None, "pip install 'subbyte[compile]'")]
    return [Finding(row.what, row.found, row.remedy) for row in examine_toolchains()]


def meters() -> list[Finding]:
    """Energy counters that can be read now."""
    from subbyte.runtime.energy import available

    return [Finding(name, "readable" if why is None else None, why or "") for name, why in available().items()]
