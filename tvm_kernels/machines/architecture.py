"""An architecture: what is true of every CPU of an instruction set, whatever target it is part of.

To add one: a file beside this one that registers it; its CPU features are rows of runtime/features.py. An architecture
whose compilers need options is a subclass that overrides `c_flags` or `llvm_options`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from subbyte.errors import RegistrationError, UnknownNameError
from subbyte.runtime.features import FAMILIES, features_of
from subbyte.tvm_kernels.record import check_fields

PAGE = "docs/add-a-target.md"  # where errors send the reader
Spelling = Literal["gcc", "zig"]  # whose options; clang takes gcc's


class Processor(Protocol):
    """What an architecture asks of a target."""

    @property
    def cpu(self) -> str:
        """LLVM's name of the CPU."""

    @property
    def system(self) -> str:
        """And ABI: the triple without the architecture."""

    @property
    def features(self) -> frozenset[str]:
        """CPU features, by our names."""


@dataclass(frozen=True)
class Tool:
    """A command, and the Debian packages that install it, with what it cannot work without."""

    command: str
    packages: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self, f"tool '{self.command}'", PAGE)

    @property
    def remedy(self) -> str:
        """How to get it."""
        return f"apt install {' '.join(self.packages)}"


def beside(compiler: str, tool: str) -> str:
    """The binary utility that goes with a compiler: arm-none-eabi-gcc, size -> arm-none-eabi-size; cc, size -> size."""
    name = os.path.basename(compiler)
    return f"{name.removesuffix('gcc')}{tool}" if name.endswith("-gcc") else tool


@dataclass(frozen=True, eq=False)
class Architecture:
    """CPUs of one instruction set. Raises RegistrationError for a part that is missing."""

    machine: str  # the first part of a triple: x86_64
    compilers: Mapping[str, Tool] = field(default_factory=dict)  # cross-compiler by system, the rest of the triple
    emulator: Tool | None = None  # qemu-user's, which runs a Linux program of another machine
    glibc_floor: tuple[int, int] | None = None  # the oldest glibc on which a library shall load; None: it has none
    multiplier: str | None = None  # the feature that multiplies integers; None: every CPU does
    needs_cpu: bool = False  # its compilers must be told the CPU by name
    any_cpu: str = "generic"  # LLVM's name of a CPU of which nothing else is known

    def __post_init__(self) -> None:
        where = f"architecture '{self.machine}'"
        check_fields(self, where, PAGE)
        if not self.any_cpu:
            raise RegistrationError(f"{where} has no any_cpu, expected LLVM's name of a CPU, such as generic")
        if not any(self.machine in family.machines for family in FAMILIES.values()):
            raise RegistrationError(
                f"{where} is of no family of CPU features; add it to FAMILIES in runtime/features.py"
            )
        if self.multiplier is not None and self.multiplier not in {row.name for row in features_of(self.machine)}:
            raise RegistrationError(f"{where}: its multiplier '{self.multiplier}' is not one of its CPU features")
        if "linux-gnu" in self.compilers and not (self.glibc_floor and self.emulator):
            raise RegistrationError(f"{where} has a compiler for linux-gnu, so it needs a glibc_floor and an emulator")

    def c_flags(self, target: Processor, spelled: Spelling) -> tuple[str, ...]:
        """Options of the C compiler for the CPU and the ABI of a target."""
        return ()

    def llvm_options(self, target: Processor) -> dict[str, Any]:
        """What `tvm.target.Target` takes beside the triple, the CPU and its features: `mattr` adds to them."""
        return {}


_rows: dict[str, Architecture] = {}
_Kind = TypeVar("_Kind", bound=Architecture)


def register_architecture(architecture: _Kind) -> _Kind:
    """Make an architecture known by its machine; raises RegistrationError for a known one, or no Architecture."""
    if not isinstance(architecture, Architecture):
        raise RegistrationError(f"register_architecture expects an Architecture, got {architecture!r}")
    if architecture.machine in _rows:
        raise RegistrationError(f"architecture '{architecture.machine}' is registered twice")
    _rows[architecture.machine] = architecture
    return architecture


def get_architecture(machine: str) -> Architecture:
    """The architecture of that machine; raises UnknownNameError with the nearest name."""
    if machine not in _rows:
        raise UnknownNameError("architecture", machine, _rows)
    return _rows[machine]
