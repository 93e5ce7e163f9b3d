"""Target `host`: this machine, with all CPU features that generated code may use."""

from __future__ import annotations

from pathlib import Path

from subbyte.runtime.features import TILE_FEATURES, features_of
from subbyte.runtime.host import CPUINFO, cpu_features, machine, permits_amx
from subbyte.runtime.systems import this_system
from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.machines.architecture import get_architecture
from subbyte.tvm_kernels.machines.running import Native
from subbyte.tvm_kernels.machines.target import Target


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
    return features - TILE_FEATURES if features & TILE_FEATURES and not permits_amx() else features


def host_target() -> Target:
    """This machine as a target; raises UnknownNameError where its architecture has no file here."""
    architecture, system = get_architecture(machine()), this_system()
    return Target(
        name="host",
        architecture=architecture,
        system=system.triple if system else "linux-gnu",
        emitter=ELF,
        features=host_features(),
        summary="this machine, with all its CPU features",
        run_by=Native(),
        cpu=architecture.any_cpu,
    )
