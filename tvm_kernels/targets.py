"""The machines we compile for, a row each: triple, CPU features, emitter, toolchain. To add one: docs/add-a-target.md.

The names of CPU features, and what LLVM calls them: runtime/features.py.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from subbyte.errors import UnknownNameError, UsageError
from subbyte.runtime.features import FEATURES, features_of
from subbyte.runtime.host import CPUINFO, cpu_features, machine, permits_amx
from subbyte.tvm_kernels.machines.boards.board import Board
from subbyte.tvm_kernels.machines.boards.mps2 import MPS2

AMX = frozenset({"amxtile", "amxint8"})
# Levels of the x86-64 ABI, as far as kernels and LLVM use their features
X86_64_V2 = frozenset({"ssse3", "sse41", "sse42", "popcnt"})
X86_64_V3 = X86_64_V2 | {"avx", "f16c", "avx2", "fma", "bmi1", "bmi2", "abm", "movbe"}
X86_64_V4 = X86_64_V3 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}

Emitter = Literal["library", "source"]

# The oldest glibc on which a linked library loads, by architecture: that of manylinux2014, and RISC-V's first.
GLIBC_FLOORS = {"x86_64": (2, 17), "aarch64": (2, 17), "riscv64": (2, 27)}


@dataclass(frozen=True)
class Target:
    """A machine: how code is generated for it, and how that code is compiled and linked."""

    name: str
    triple: str  # architecture-system-abi, e.g. x86_64-linux-gnu
    emitter: Emitter
    features: frozenset[str]
    summary: str
    cpu: str = ""  # LLVM's name of the CPU, for scheduling and what the features do not say
    c_flags: tuple[str, ...] = ()  # for the C compiler
    zig_target: str = ""  # what `zig cc -target` calls it; empty: zig cannot build for it
    compilers: tuple[str, ...] = ()  # cross-compilers to look for, before zig
    install: str = ""  # how to get the first of them
    code_generator: Literal["llvm", "c"] = "llvm"
    board: Board | None = None  # what the example of C sources runs on

    def __post_init__(self) -> None:
        unknown = self.features - FEATURES.keys()
        if unknown:
            raise UnknownNameError("CPU feature", sorted(unknown)[0], FEATURES)
        foreign = sorted(self.features - {feature.name for feature in features_of(self.architecture)})
        if foreign:
            raise UsageError(
                f"target '{self.name}': {self.triple} cannot have the CPU feature '{foreign[0]}', which is one of "
                f"family '{FEATURES[foreign[0]].family}'; see FAMILIES in runtime/features.py"
            )
        unasked = sorted(name for name in self.features if FEATURES[name].bit is None)
        if self.emitter == "library" and unasked:
            raise UsageError(
                f"target '{self.name}': a CPU cannot be asked whether it has '{unasked[0]}', so a library for it may "
                f"run into an illegal instruction; leave the feature out, or use the emitter 'source'"
            )
        if not self.name or self.emitter not in ("library", "source"):
            raise UsageError(f"target '{self.name}': a target needs a name and an emitter, 'library' or 'source'")

    @property
    def architecture(self) -> str:
        """The first part of the triple: x86_64, aarch64, ..."""
        return self.triple.split("-")[0]

    @property
    def multiplies(self) -> bool:
        """Whether its CPU has an instruction that multiplies integers: RISC-V's is an extension, `m`."""
        return not self.architecture.startswith("riscv") or "m" in self.features

    @property
    def glibc_floor(self) -> tuple[int, int] | None:
        """The oldest glibc that a library for this target shall load on; None where the system has no glibc."""
        return GLIBC_FLOORS.get(self.architecture) if self.triple.endswith("-linux-gnu") else None

    @property
    def is_native(self) -> bool:
        """Whether this machine and system run its code, features aside."""
        return self.architecture == machine() and ("linux" in self.triple) == (platform.system() == "Linux")

    def tvm_target(self) -> Any:
        """The `tvm.target.Target` for code generation."""
        import tvm

        if self.code_generator == "c":
            return tvm.target.Target({"kind": "c"})
        attributes = [f"+{feature.llvm}" for feature in FEATURES.values() if feature.name in self.features]
        if "avx512f" in self.features:
            attributes.append("-prefer-256-bit")
        row: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mattr": attributes}
        if self.cpu:
            row["mcpu"] = self.cpu
        return tvm.target.Target(row)


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


def _host() -> Target:
    here = machine()
    system = {"Linux": "linux-gnu", "Darwin": "apple-darwin", "Windows": "windows-gnu"}.get(
        platform.system(), "linux-gnu"
    )
    return Target(
        name="host",
        triple=f"{here}-{system}",
        emitter="library",
        features=host_features(),
        summary="this machine, with all its CPU features",
        cpu={"x86_64": "x86-64"}.get(here, "generic"),
        zig_target={"linux-gnu": f"{here}-linux-gnu", "windows-gnu": f"{here}-windows-gnu"}.get(
            system, f"{here}-macos"
        ),
        install="apt install gcc, or pip install ziglang",
    )


_rows: dict[str, Target] = {}


def register_target(target: Target) -> Target:
    """Make a target known by its name; raises UsageError when the name is taken."""
    if target.name in _rows or target.name == "host":
        raise UsageError(f"target '{target.name}' is registered twice; choose another name")
    _rows[target.name] = target
    return target


def all_targets() -> Iterator[Target]:
    """Every target, `host` first, in the order of registration."""
    yield _host()
    yield from tuple(_rows.values())


def get_target(name: str) -> Target:
    """The target of that name; raises UnknownNameError with the nearest name."""
    if name == "host":
        return _host()
    if name not in _rows:
        raise UnknownNameError("target", name, ["host", *_rows])
    return _rows[name]


# ---- rows ----

register_target(
    Target(
        name="x86-64-v3",
        triple="x86_64-linux-gnu",
        emitter="library",
        features=X86_64_V3,
        summary="Linux on x86-64 with AVX2 and FMA (Haswell, Zen, and later)",
        cpu="x86-64",
        zig_target="x86_64-linux-gnu",
        compilers=("x86_64-linux-gnu-gcc",),
        install="apt install gcc-x86-64-linux-gnu, or pip install ziglang",
    )
)
register_target(
    replace(
        get_target("x86-64-v3"),
        name="x86-64-v2",
        features=X86_64_V2,
        summary="Linux on x86-64 with SSE4.2 (Nehalem, Bulldozer, Atom, and later)",
    )
)
register_target(
    replace(
        get_target("x86-64-v3"),
        name="x86-64-v4",
        features=X86_64_V4,
        summary="Linux on x86-64 with AVX-512 F, BW, CD, DQ, VL (Skylake-X, Zen 4, and later)",
    )
)
register_target(
    Target(
        name="cortex-a53",
        triple="aarch64-linux-gnu",
        emitter="library",
        features=frozenset({"neon"}),
        summary="Linux on 64-bit Arm (Raspberry Pi 3 and later)",
        cpu="cortex-a53",
        c_flags=("-mcpu=cortex-a53",),
        zig_target="aarch64-linux-gnu",
        compilers=("aarch64-linux-gnu-gcc",),
        install="apt install gcc-aarch64-linux-gnu, or pip install ziglang",
    )
)
register_target(
    Target(
        name="cortex-m4",
        triple="thumbv7em-none-eabihf",
        emitter="source",
        features=frozenset({"dsp"}),
        summary="C sources for Arm Cortex-M4F and anything else with a C99 compiler: no heap, no threads",
        c_flags=("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
        compilers=("arm-none-eabi-gcc",),
        install="apt install gcc-arm-none-eabi libnewlib-arm-none-eabi",
        code_generator="c",
        board=MPS2,
    )
)
import_module("subbyte.tvm_kernels.machines.targets")  # registers those that have files of their own
