"""What runs a target's program where another machine compiles it. Boards are the third kind: board.py."""

from __future__ import annotations

from dataclasses import dataclass

from subbyte.tvm_kernels.machines.architecture import PAGE
from subbyte.tvm_kernels.record import check_fields


@dataclass(frozen=True)
class Native:
    """Only a machine that has the CPU's features: qemu knows none that does."""


@dataclass(frozen=True)
class QemuUser:
    """qemu-user of the architecture, on a CPU of its list: the oldest one that has all features of the target."""

    cpu: str  # as `-cpu` names it; `qemu-<machine> -cpu help` lists them

    def __post_init__(self) -> None:
        check_fields(self, "qemu-user", PAGE)
