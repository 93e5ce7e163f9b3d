"""An emitter: what writes a plan for a target as the members of a bundle. A target names its emitter.

To add one: a file beside this one that registers it, as elf.py and c_source.py do. A target is made without TVM and
before other targets are known, so such a file imports what needs them inside its function. A bundle whose program is
neither loaded nor built as others are takes a row of runtime/program_form.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from subbyte.errors import RegistrationError
from subbyte.runtime.program_form import FORMS, ProgramForm
from subbyte.tvm_kernels.emit.emitted import Emitted
from subbyte.tvm_kernels.record import check_fields

CodeGenerator = Literal["llvm", "c"]  # TVM's


@dataclass(frozen=True)
class Emitter:
    """How a program is written. Raises RegistrationError for a part that is missing or wrong."""

    name: str
    summary: str  # what it writes, for documents
    form: ProgramForm  # what the runtime does with such a bundle; its word is in the manifest
    code_generator: CodeGenerator  # makes the kernels
    asks_cpu: bool  # the program asks its CPU for the target's features; else the compiler that builds it knows them
    makes_archive: bool  # `emit` takes archive=True, and then writes library.a too
    emit: Callable[..., Emitted]  # of a plan, a target, and a golden run or None

    def __post_init__(self) -> None:
        check_fields(self, f"emitter '{self.name}'", "docs/add-a-target.md")
        if FORMS.get(self.form.word) is not self.form:
            raise RegistrationError(
                f"emitter '{self.name}': the runtime does not know its form '{self.form.word}', expected a row of "
                f"FORMS in runtime/program_form.py: {', '.join(FORMS)}"
            )


_rows: dict[str, Emitter] = {}


def register_emitter(emitter: Emitter) -> Emitter:
    """Make an emitter known by its name; raises RegistrationError when it is taken, or for anything but an Emitter."""
    if not isinstance(emitter, Emitter):
        raise RegistrationError(f"register_emitter expects an Emitter, got {emitter!r}")
    if emitter.name in _rows:
        raise RegistrationError(f"emitter '{emitter.name}' is registered twice; choose another name")
    _rows[emitter.name] = emitter
    return emitter


def all_emitters() -> tuple[Emitter, ...]:
    """Every emitter, in the order of registration."""
    return tuple(_rows.values())
