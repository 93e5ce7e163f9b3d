"""A board without an operating system: what its programs start with, and what runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import subbyte.runtime
from subbyte.errors import RegistrationError
from subbyte.tvm_kernels.machines.architecture import Tool

FILES = ("board.h", "startup.c", "link.ld")  # text and a clock; from reset to main and from there to the end; memory


@dataclass(frozen=True)
class Board:
    """A board, and its emulator. Raises RegistrationError for one with a part missing."""

    name: str  # also of its folder in runtime/c/boards, which has FILES
    link_flags: tuple[str, ...]  # for the C compiler, beside the linker script
    emulator: Tool
    arguments: tuple[str, ...]  # of the emulator, before the program
    instructions_per_tick: int  # of its clock under that emulator

    def __post_init__(self) -> None:
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise RegistrationError(f"board '{self.name}' has no {missing[0]}; add it to {self.folder}")
        if not self.emulator or not self.arguments or self.instructions_per_tick < 1:
            raise RegistrationError(
                f"board '{self.name}': its emulator, arguments, instructions_per_tick must be given"
            )

    def command(self, program: str = "") -> list[str]:
        """What runs a program under the emulator; without one all words before it."""
        return [self.emulator.command, *self.arguments, *([program] if program else [])]

    @property
    def folder(self) -> Path:
        """Where its FILES are."""
        return Path(subbyte.runtime.__file__).parent / "c" / "boards" / self.name
