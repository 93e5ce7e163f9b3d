"""A board without an operating system: its memory, what its programs start with, and what runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import subbyte.runtime
from subbyte.errors import RegistrationError
from subbyte.tvm_kernels.machines.architecture import PAGE, Architecture, Tool
from subbyte.tvm_kernels.record import check_fields

# text and a clock; from reset to main and from there to the end; sections, in the memory that memory.ld describes
FILES = ("board.h", "startup.c", "link.ld")
MEMORY_SCRIPT = "memory.ld"
DEFINE = "-DSUBBYTE_BOARD"  # for console.h, which includes board.h


@dataclass(frozen=True)
class Memory:
    """A region of a board's memory."""

    origin: int  # address of its first byte
    nbytes: int

    def __post_init__(self) -> None:
        check_fields(self, "memory of a board", PAGE)
        if self.nbytes < 1 or self.origin < 0:
            raise RegistrationError(
                f"memory of a board has {self.nbytes} bytes from address {self.origin}, expected at least 1, from an "
                f"address that is not negative"
            )


@dataclass(frozen=True)
class Board:
    """A board, and its emulator. Raises RegistrationError for one with a part missing or wrong."""

    name: str
    runs: tuple[Architecture, ...]  # those whose programs its CPU runs
    cpus: tuple[str, ...]  # LLVM's names of the CPUs whose programs it runs; empty: features tell CPUs apart
    features: frozenset[str]  # of its CPU
    files: str  # folder of runtime/c/boards that has FILES; boards of a family share one
    flash: Memory  # for code and constants
    ram: Memory
    stack: int  # bytes of the RAM that the linker keeps for it
    link_flags: tuple[str, ...]  # for the C compiler, beside the linker script
    emulator: Tool  # that runs its programs
    arguments: tuple[str, ...]  # of the emulator, before the program
    instructions_per_tick: int  # of its clock under that emulator

    def __post_init__(self) -> None:
        where = f"board '{self.name}'"
        check_fields(self, where, PAGE, empty=("cpus", "features", "link_flags"))
        for part, value in (("stack", self.stack), ("instructions_per_tick", self.instructions_per_tick)):
            if value < 1:
                raise RegistrationError(f"{where}: its {part} is {value}, expected at least 1; see {PAGE}")
        first, second = sorted((self.flash, self.ram), key=lambda memory: memory.origin)
        if first.origin + first.nbytes > second.origin:
            raise RegistrationError(
                f"{where}: its flash and its RAM overlap: {first.nbytes} bytes from address {first.origin:#x}, and "
                f"{second.nbytes} from {second.origin:#x}; correct the addresses or sizes"
            )
        absent = [name for name in FILES if not (self.folder / name).is_file()]
        if absent:
            raise RegistrationError(f"{where} has no {absent[0]}; add it to {self.folder}")

    @property
    def c_flags(self) -> tuple[str, ...]:
        """Options of the C compiler for sources that use the board."""
        return (DEFINE,)

    @property
    def needed(self) -> tuple[str, ...]:
        """Files that a program is built of beside its own; headers are included."""
        return tuple(sorted(name for name in (*FILES, MEMORY_SCRIPT) if not name.endswith(".h")))

    @property
    def link_options(self) -> tuple[str, ...]:
        """Options of the C compiler where it links a program."""
        return (*self.link_flags, "-Wl,--gc-sections", "-T", "link.ld")

    def command(self, program: str = "") -> list[str]:
        """What runs a program under the emulator; without one all words before it."""
        return [self.emulator.command, *self.arguments, *([program] if program else [])]

    @property
    def folder(self) -> Path:
        """Where its FILES are."""
        return Path(subbyte.runtime.__file__).parent / "c" / "boards" / self.files

    def sources(self) -> dict[str, bytes]:
        """The files that its programs are built with, by name."""
        memory = {MEMORY_SCRIPT: self.memory_script().encode()}
        return memory | {name: (self.folder / name).read_bytes() for name in FILES}

    def memory_script(self, nbytes: int | None = None) -> str:
        """What `link.ld` includes: the memory of the board; `nbytes`: of each region in place of the board's own."""
        memory = "".join(
            f"  {kind} (rwx) : ORIGIN = {region.origin:#010x}, LENGTH = {nbytes or region.nbytes}\n"
            for kind, region in (("FLASH", self.flash), ("RAM", self.ram))
        )
        return f"/* Memory of board {self.name}. */\nimage_stack_bytes = {self.stack};\nMEMORY\n{{\n{memory}}}\n"
