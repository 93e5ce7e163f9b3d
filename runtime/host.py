"""Whether this machine can run a bundle: operating system, processor, CPU features; and how many cores it may use."""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from subbyte.errors import BundleError, UsageError
from subbyte.files.plain import open_plain
from subbyte.runtime.cgroup import cpu_group
from subbyte.runtime.features import canonical, features_of
from subbyte.runtime.manifest import TargetInfo
from subbyte.runtime.sysfs import text_of
from subbyte.runtime.systems import system_of, this_system

# What the CPU has; SUBBYTE_CPUINFO names another file of that form, to compile and test as on a lesser CPU.
CPUINFO = Path(os.environ.get("SUBBYTE_CPUINFO") or "/proc/cpuinfo")

_AUXILIARY = {"HWCAP": 16, "HWCAP2": 26}  # words of features.py: keys of getauxval, AT_HWCAP and AT_HWCAP2

# linux/arch/x86/include/uapi/asm/prctl.h: ARCH_REQ_XCOMP_PERM for state component XTILE_DATA
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

# What systems call an architecture -> the first part of a target triple.
_MACHINES = {
    "amd64": "x86_64",
    "x64": "x86_64",
    "arm64": "aarch64",
    "i686": "i386",
    "armv7l": "armv7",
    "armv8l": "armv7",
}


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Features that every core has, by the names of `canonical`; empty where the system does not tell.

    Cores of different kinds (big.LITTLE) have the features they share. Without `cpuinfo`, Linux on Arm and RISC-V is
    asked by getauxval; on x86 the CPU itself tells, which the C core asks (CPUID) before a kernel runs.
    Raises UsageError if the file that SUBBYTE_CPUINFO names is not one of that form.
    """
    shared: frozenset[str] | None = None
    seen: set[str] = set()
    is_named = str(cpuinfo) == os.environ.get("SUBBYTE_CPUINFO")
    try:
        with io.TextIOWrapper(open_plain(cpuinfo), encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                key = key.strip()
                if key not in ("flags", "Features", "isa") or value in seen:
                    continue
                seen.add(value)
                names = _riscv(value.strip()) if key == "isa" else value.split()
                found = frozenset(canonical(name) for name in names)
                shared = found if shared is None else shared & found
                if key == "flags":
                    break  # x86 cores are alike, and the file is long on a large server
    except OSError as error:
        if is_named:
            raise UsageError(f"SUBBYTE_CPUINFO names '{cpuinfo}', which cannot be read: {error}") from error
        return _auxiliary_features()
    if is_named and shared is None:
        raise UsageError(
            f"SUBBYTE_CPUINFO names '{cpuinfo}', which has no line 'flags', 'Features' or 'isa'; expected a file of "
            "the form of /proc/cpuinfo"
        )
    return shared or frozenset()


def _auxiliary_features() -> frozenset[str]:
    """What the kernel told this process when it began, of the words in `_AUXILIARY`; nothing on x86."""
    told = [(row.name, row.bit) for row in features_of(machine()) if row.bit and row.bit.word in _AUXILIARY]
    ask = getattr(ctypes.CDLL(None), "getauxval", None) if told and sys.platform == "linux" else None
    if ask is None:
        return frozenset()
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(name for name, bit in told if ask(_AUXILIARY[bit.word]) >> bit.number & 1)


def _riscv(isa: str) -> list[str]:
    """'rv64imafdc_zicsr_zba' -> ['i', 'm', 'a', 'f', 'd', 'c', 'zicsr', 'zba']."""
    base, *extensions = isa.split("_")
    return [*base[4:], *extensions]


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls this CPU, as runtime/c/machine.c reads it; the architecture where it does not tell."""
    rows: dict[str, str] = {}
    for line in (text_of(cpuinfo) or "").splitlines():
        key, _, value = line.partition(":")
        rows.setdefault(key.strip(), value.strip())
    return next(filter(None, map(rows.get, ("model name", "Model", "Hardware", "uarch", "CPU part"))), machine())


def permits_amx() -> bool:
    """Whether Linux lets this process use AMX's tile registers; asks for it, for all threads that there will be."""
    if not sys.platform.startswith("linux") or machine() != "x86_64":
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return refused == 0


def machine() -> str:
    """The processor's architecture as in a target triple: x86_64, aarch64, riscv64, ..."""
    if hasattr(os, "uname"):
        name = os.uname().machine
    else:
        import platform

        name = platform.machine()
    return _MACHINES.get(name.lower(), name.lower())


def system_glibc() -> str | None:
    """The version of this system's C library, as "2.36"; None where it is not glibc."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):  # Windows; musl; macOS
        return None
    return version if name == "glibc" and re.fullmatch(r"\d+\.\d+.*", version) else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def check_target(target: TargetInfo, cpuinfo: Path = CPUINFO) -> None:
    """Raise BundleError unless native code for `target` can run here: operating system, processor, CPU features."""
    recompile = "Compile the model again for this machine: `subbyte compile model.onnx --target host`"
    if not target.form.is_loaded:
        raise BundleError(
            f"the bundle for '{target.name}' holds {target.form.holds}, which must be built first: "
            f"{target.form.build}. To run the model on this machine, use `subbyte compile model.onnx --target host`."
        )
    first = target.triple.lower().split("-")[0]
    wanted_machine = _MACHINES.get(first, first)
    system = this_system()
    if wanted_machine != machine() or system is None or system_of(target.triple) != system:
        here = f"{machine()}-{system.name if system else sys.platform}"
        raise BundleError(
            f"the bundle is for {target.triple} (target '{target.name}'), this machine is {here}. {recompile} "
            f"on this machine, or with the target that fits it (`subbyte targets`)."
        )
    glibc = system_glibc()
    if target.glibc and glibc and _version(glibc) < _version(target.glibc):
        raise BundleError(
            f"the bundle's library needs glibc {target.glibc}, this system has {glibc}. {recompile} on this machine, "
            f"or anywhere with ziglang, which links for older systems (`pip install ziglang`)."
        )
    if not target.features:
        return
    have = cpu_features(cpuinfo)
    if not have and machine() == "x86_64":
        return  # the C core asks the CPU, by CPUID, before a kernel runs
    missing = [feature for feature in target.features if canonical(feature) not in have]
    if missing:
        why = f"this CPU lacks {', '.join(missing)}" if have else f"{cpuinfo} does not list the features of this CPU"
        raise BundleError(
            f"the bundle for target '{target.name}' needs CPU features {', '.join(target.features)}: {why}. "
            f"{recompile}, or with a target that needs fewer features (`subbyte targets`)."
        )


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use: its affinity, without SMT siblings, within its cgroup's CPU quota."""
    return max(1, min(len(physical_cpus(root)), _quota(root)))


def physical_cpus(root: Path = Path("/")) -> list[int]:
    """One logical CPU of each physical core that this process may run on."""
    try:
        allowed: Iterable[int] = sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this system, or refused to this process
        allowed = range(os.cpu_count() or 1)
    cores: dict[str, int] = {}
    for cpu in allowed:
        try:
            siblings = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        cores.setdefault(siblings, cpu)
    return list(cores.values())


def why_not_pinned() -> str | None:
    """Why this process may not choose the cores of its threads, with what to do; None where it may."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except OSError as error:
        return (
            f"the system does not let this process choose its cores (sched_setaffinity: {error.strerror}): threads "
            f"move between them; allow it in the container's seccomp profile"
        )
    return None


def _quota(root: Path) -> int:
    quota = cpu_group(root).quota()
    return max(1, int(quota + 0.5)) if quota is not None else 1 << 30
