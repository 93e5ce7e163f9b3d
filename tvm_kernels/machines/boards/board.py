"""A board without an operating system: what its programs start with, and what runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import subbyte.runtime
from subbyte.errors import RegistrationError

FILES = ("board.h", "startup.c", "link.ld")  # text and a clock; from reset to main and from there to the end; memory


@dataclass(frozen=True)
class Board:
    """A board, and its emulator. Raises RegistrationError for one with a part missing."""

    name: str  # also of its folder in runtime/c/boards, which has FILES
    link_flags: tuple[str, ...]  # for the C compiler, beside the linker script
    emulator: tuple[str, ...]  # the command that runs a program, whose path is its last argument
    instructions_per_tick: int  # of its clock under that emulator
    install: str  # how to get the emulator

    def __post_init__(self) -> None:
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise RegistrationError(f"board '{self.name}' has no {missing[0]}; add it to {self.folder}")
        if not self.emulator or self.instructions_per_tick < 1:
            raise RegistrationError(f"board '{self.name}': its emulator and instructions_per_tick must be given")

    @property
    def folder(self) -> Path:
        """Where its FILES are."""
        return Path(subbyte.runtime.__file__).parent / "c" / "boards" / self.name
