"""A target: a CPU with a system, and how a program for it is written. To add one: docs/add-a-target.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from subbyte.errors import RegistrationError, UnknownNameError
from subbyte.runtime.features import FEATURES, features_of
from subbyte.runtime.host import machine
from subbyte.runtime.systems import SYSTEMS, system_of, this_system
from subbyte.tvm_kernels.emit.emitter import Emitter
from subbyte.tvm_kernels.machines.architecture import PAGE, Architecture, Tool
from subbyte.tvm_kernels.machines.board import Board
from subbyte.tvm_kernels.machines.running import Native, QemuUser
from subbyte.tvm_kernels.record import check_fields

_NAME = re.compile(r"[a-z0-9.-]+")
_ZIG_SYSTEMS = {system.triple: system.zig for system in SYSTEMS}


@dataclass(frozen=True)
class Target:
    """A machine: how code is generated for it, and how that code is compiled and linked.

    Raises RegistrationError for a part that is missing or does not fit the others, UnknownNameError for a CPU feature.
    `check_cpu` refuses an unknown CPU when a model is compiled: LLVM's list needs TVM, which takes seconds to import.
    """

    name: str
    architecture: Architecture
    system: str  # and ABI: the triple without the architecture, e.g. linux-gnu
    emitter: Emitter  # what writes its bundles
    features: frozenset[str]
    summary: str
    run_by: Native | QemuUser | Board  # what its tests run it by
    cpu: str = ""  # LLVM's name of the CPU, for scheduling and what the features do not say

    def __post_init__(self) -> None:
        where = f"target '{self.name}'"
        check_fields(self, where, PAGE, empty=("features",))
        if not _NAME.fullmatch(self.name):
            raise RegistrationError(f"{where}: a name has lower-case letters, digits, '.' and '-' only")
        for name in sorted(self.features):
            self._check_feature(name)
        self._check_cpu_is_used()
        self._check_system()

    def _check_system(self) -> None:
        known = {*self.architecture.compilers}
        if self.architecture.glibc_floor:
            known |= _ZIG_SYSTEMS.keys()
        if self.system not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise RegistrationError(
                f"target '{self.name}': no compiler is known for {self.architecture.machine} with system "
                f"'{self.system}'. Systems of {self.architecture.machine}: {listed}; to add one, name its compiler in "
                f"the architecture's file in tvm_kernels/machines/"
            )
        if isinstance(self.run_by, QemuUser) and self.architecture.emulator is None:
            raise RegistrationError(
                f"target '{self.name}': {self.architecture.machine} has no qemu-user; use a board, or Native()"
            )
        if isinstance(self.run_by, Board):
            self._check_board(self.run_by)

    def _check_board(self, board: Board) -> None:
        """Its CPU runs the programs of this target."""
        where = f"target '{self.name}': board '{board.name}'"
        if self.system in _ZIG_SYSTEMS:
            raise RegistrationError(
                f"{where} runs programs without an operating system, not those for '{self.system}'; use QemuUser or "
                f"Native()"
            )
        if self.architecture not in board.runs:
            known = ", ".join(architecture.machine for architecture in board.runs)
            raise RegistrationError(f"{where} runs programs for {known}, not for {self.architecture.machine}")
        if board.cpus and self.cpu not in board.cpus:
            raise RegistrationError(f"{where} runs programs for the CPU {', '.join(board.cpus)}, not for '{self.cpu}'")
        lacking = sorted(self.features - board.features)
        if lacking:
            raise RegistrationError(f"{where}: its CPU lacks {', '.join(lacking)}, which the target's programs may use")

    def _check_cpu_is_used(self) -> None:
        """Compilers of some architectures need the CPU; of C sources only their options can depend on it."""
        if self.architecture.needs_cpu:
            if self.cpu:
                return
            raise RegistrationError(
                f"target '{self.name}' has no cpu, by which compilers for {self.architecture.machine} know the "
                f"instructions; give LLVM's name, such as cortex-m4"
            )
        if self.emitter.code_generator != "c" or not self.cpu:
            return
        options = self.architecture.c_flags
        if options(self, "gcc") == options(replace(self, cpu=""), "gcc"):
            raise RegistrationError(
                f"target '{self.name}': cpu '{self.cpu}' would change nothing: options of a C compiler for "
                f"{self.architecture.machine} follow from the features. Leave cpu out"
            )

    def check_cpu(self) -> None:
        """Raises UnknownNameError, with the nearest names, for a CPU that LLVM does not know; imports TVM."""
        if not self.cpu:
            return
        import tvm

        triple = tvm.target.Target({"kind": "llvm", "mtriple": self.triple})
        known = [str(name) for name in tvm.get_global_func("target.llvm_get_cpu_archlist")(triple)]
        if self.cpu not in known:
            raise UnknownNameError(f"CPU of {self.architecture.machine}", self.cpu, known)

    def _check_feature(self, name: str) -> None:
        if name not in FEATURES:
            raise UnknownNameError("CPU feature", name, FEATURES)
        if FEATURES[name] not in features_of(self.architecture.machine):
            raise RegistrationError(
                f"target '{self.name}': {self.triple} cannot have the CPU feature '{name}', which is one of "
                f"family '{FEATURES[name].family}'; see FAMILIES in runtime/features.py"
            )
        if self.emitter.asks_cpu and FEATURES[name].bit is None:
            raise RegistrationError(
                f"target '{self.name}': a CPU cannot be asked whether it has '{name}', so what emitter "
                f"'{self.emitter.name}' writes may run into an illegal instruction; leave the feature out, or use an "
                f"emitter whose C compiler knows the feature, such as 'c_source'"
            )

    @property
    def triple(self) -> str:
        """LLVM's: architecture-system-abi, e.g. x86_64-linux-gnu."""
        return f"{self.architecture.machine}-{self.system}"

    @property
    def multiplies(self) -> bool:
        """Whether its CPU has an instruction that multiplies integers."""
        return self.architecture.multiplier is None or self.architecture.multiplier in self.features

    @property
    def compiler(self) -> Tool | None:
        """The cross-compiler to look for, before zig."""
        return self.architecture.compilers.get(self.system)

    @property
    def emulator(self) -> Tool | None:
        """What runs its program here; None where this takes the CPU itself."""
        if isinstance(self.run_by, QemuUser):
            return self.architecture.emulator
        return self.board.emulator if self.board else None

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian's, with its cross-compiler and emulator."""
        return tuple(package for tool in (self.compiler, self.emulator) if tool for package in tool.packages)

    @property
    def board(self) -> Board | None:
        """What a program without an operating system runs on."""
        return self.run_by if isinstance(self.run_by, Board) else None

    def command(self, program: str) -> list[str]:
        """What runs a program of the target here; a Linux program's arguments follow."""
        if self.board:
            return self.board.command(program)
        if isinstance(self.run_by, QemuUser) and self.emulator:
            return [self.emulator.command, "-cpu", self.run_by.cpu, program]
        return [program]

    @property
    def zig_target(self) -> str:
        """What `zig cc -target` calls it; empty: zig cannot build for it."""
        system = _ZIG_SYSTEMS.get(self.system)
        return f"{self.architecture.machine}-{system}" if system else ""

    @property
    def remedy(self) -> str:
        """How to get a C compiler for it."""
        install = "apt install gcc" if self.is_native else self.compiler.remedy if self.compiler else ""
        return ", or ".join(filter(None, (install, "pip install ziglang" if self.zig_target else "")))

    @property
    def glibc_floor(self) -> tuple[int, int] | None:
        """The oldest glibc that a library for this target shall load on; None where the system has no glibc."""
        return self.architecture.glibc_floor if self.system == "linux-gnu" else None

    @property
    def is_native(self) -> bool:
        """Whether this machine and system run its code, features aside."""
        system = system_of(self.triple)
        return self.architecture.machine == machine() and system is not None and system == this_system()

    def tvm_target(self) -> Any:
        """The `tvm.target.Target` for code generation; raises UnknownNameError for a CPU that LLVM does not know."""
        import tvm

        self.check_cpu()
        if self.emitter.code_generator == "c":
            return tvm.target.Target({"kind": "c"})
        options = self.architecture.llvm_options(self)
        attributes = [f"+{feature.llvm}" for feature in FEATURES.values() if feature.name in self.features]
        row: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, **options}
        row["mattr"] = [*attributes, *options.get("mattr", ())]
        if self.cpu:
            row["mcpu"] = self.cpu
        return tvm.target.Target(row)
