"""What a figure was measured on: processor, clock, load, memory, system. `root` is injectable, for tests."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subbyte.runtime import host
from subbyte.runtime.sysfs import decimal, integer, text_of


@dataclass(frozen=True)
class Machine:
    """The machine's context; None where the system does not tell."""

    cpu: str
    architecture: str
    features: tuple[str, ...]
    logical_cpus: int
    physical_cores: int
    usable_cores: int  # by affinity and cgroup quota
    governor: str | None
    mhz: float | None  # now
    mhz_min: float | None
    mhz_max: float | None
    boost: bool | None
    temperature_c: float | None  # the hottest zone
    load_1min: float | None
    memory_bytes: int | None
    memory_available_bytes: int | None
    system: str
    kernel: str
    virtualised: bool | None
    python: str
    numpy: str
    subbyte: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def machine(root: Path = Path("/")) -> Machine:
    """Describe this machine; never raises for what the system hides."""
    import platform

    import numpy as np

    from subbyte import __version__

    cpuinfo = _cpuinfo(root)
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    memory = _meminfo(root)
    features = host.cpu_features(root / "proc/cpuinfo")
    return Machine(
        cpu=_cpu_name(cpuinfo) or platform.processor() or host.machine(),
        architecture=host.machine(),
        features=tuple(sorted(features)),
        logical_cpus=os.cpu_count() or 1,
        physical_cores=_physical_cores(root),
        usable_cores=host.usable_cores(root),
        governor=text_of(cpufreq / "scaling_governor"),
        mhz=_megahertz(cpufreq / "scaling_cur_freq") or decimal(cpuinfo.get("cpu MHz")),
        mhz_min=_megahertz(cpufreq / "cpuinfo_min_freq"),
        mhz_max=_megahertz(cpufreq / "cpuinfo_max_freq"),
        boost=_boost(root),
        temperature_c=_temperature(root),
        load_1min=decimal((text_of(root / "proc/loadavg") or "").split(" ")[0]),
        memory_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        system=_system(root) or platform.system(),
        kernel=text_of(root / "proc/sys/kernel/osrelease") or platform.release(),
        virtualised=("hypervisor" in cpuinfo.get("flags", "").split()) if "flags" in cpuinfo else _hypervisor(root),
        python=f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
        numpy=np.__version__,
        subbyte=__version__,
    )


def disturbances(machine: Machine, threads: int = 1) -> list[str]:
    """Why figures taken here may not be steady: one sentence each, with what to do."""
    found = []
    if machine.load_1min is not None and machine.load_1min > max(0.5, machine.logical_cpus - threads):
        found.append(
            f"other programs load this machine (load {machine.load_1min:.1f} on {machine.logical_cpus} CPUs): stop them"
        )
    if machine.governor is not None and machine.governor != "performance":
        found.append(
            f"the clock follows the load (governor '{machine.governor}'): cpupower frequency-set -g performance"
        )
    if machine.virtualised:
        found.append("this is a virtual machine: its host may take the CPU away unseen")
    if machine.temperature_c is not None and machine.temperature_c > 85:
        found.append(f"the CPU is at {machine.temperature_c:.0f} C and may throttle: cool it")
    if machine.usable_cores < threads:
        found.append(f"{threads} threads share {machine.usable_cores} cores: use fewer threads")
    return found


# ---- /proc and /sys ----


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first core's rows of /proc/cpuinfo."""
    rows: dict[str, str] = {}
    for line in (text_of(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        rows.setdefault(key.strip(), value.strip())
    return rows


def _cpu_name(cpuinfo: dict[str, str]) -> str | None:
    for key in ("model name", "Model", "Hardware", "uarch", "CPU part"):
        if cpuinfo.get(key):
            return cpuinfo[key]
    return None


def _physical_cores(root: Path) -> int:
    groups = {text_of(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")}
    return len(groups - {None}) or os.cpu_count() or 1


def _megahertz(path: Path) -> float | None:
    kilohertz = decimal(text_of(path))
    return kilohertz / 1000 if kilohertz else None


def _boost(root: Path) -> bool | None:
    no_turbo = text_of(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = text_of(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _temperature(root: Path) -> float | None:
    found = [decimal(text_of(path)) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    known = [value / 1000 for value in found if value is not None]
    return max(known) if known else None


def _meminfo(root: Path) -> dict[str, int]:
    rows = {}
    for line in (text_of(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kilobytes = integer(value.strip().removesuffix(" kB"))
        if kilobytes is not None:
            rows[key] = kilobytes * 1024
    return rows


def _system(root: Path) -> str | None:
    for line in (text_of(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return None


def _hypervisor(root: Path) -> bool | None:
    """On CPUs without the flag: what device tree or firmware say."""
    if (root / "sys/hypervisor/type").exists() or (root / "proc/device-tree/hypervisor").exists():
        return True
    vendor = text_of(root / "sys/class/dmi/id/sys_vendor")
    return None if vendor is None else any(name in vendor for name in ("QEMU", "VMware", "Xen", "Amazon", "Google"))
