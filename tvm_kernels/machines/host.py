"""Target `host`: this machine, with all CPU features that generated code may use."""

from __future__ import annotations

import platform
from pathlib import Path

from subbyte.runtime.features import features_of
from subbyte.runtime.host import CPUINFO, cpu_features, machine, permits_amx
from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.architecture import get_architecture
from subbyte.tvm_kernels.machines.running import Native
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.machines.x86 import AMX

_SYSTEMS = {"Linux": "linux-gnu", "Darwin": "apple-darwin", "Windows": "windows-gnu"}


def host_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """CPU features of this machine that generated code may use: as the system tells, else as LLVM asks the CPU itself.

    Tile registers are left out if Linux does not permit this process to use them.
    """
    has = cpu_features(cpuinfo)
    if has:
        features = frozenset(row.name for row in features_of(machine()) if row.name in has)
    else:
        import tvm

        told = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
        features = frozenset(row.name for row in features_of(machine()) if told.get(row.llvm))
    return features - AMX if features & AMX and not permits_amx() else features


def host_target() -> Target:
    """This machine as a target; raises UnknownNameError where its architecture has no file here."""
    return Target(
        name="host",
        architecture=get_architecture(machine()),
        system=_SYSTEMS.get(platform.system(), "linux-gnu"),
        emitter=ELF,
        features=host_features(),
        summary="this machine, with all its CPU features",
        run_by=Native(),
        cpu={"x86_64": "x86-64", "riscv64": "generic-rv64"}.get(machine(), "generic"),
    )
