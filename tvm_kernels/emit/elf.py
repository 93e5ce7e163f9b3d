"""The emitter `elf`: LLVM's objects, the plan's table and the C core in one self-contained shared library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subbyte.runtime.program_form import FORMS
from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.emit.emitter import Emitter, register_emitter

if TYPE_CHECKING:
    from subbyte.tvm_kernels.machines.target import Target
    from subbyte.tvm_kernels.plan import Plan


def _emit(plan: Plan, target: Target, golden: Golden | None = None, archive: bool = False) -> Emitted:
    from subbyte.tvm_kernels.emit.shared_library import emit_library  # imports TVM

    return emit_library(plan, target, golden, archive)


ELF = register_emitter(
    Emitter(
        name="elf",
        summary="LLVM objects, the plan and the C core in one shared library, on request an archive, for Linux a "
        "static `bench` program",
        form=FORMS["library"],
        code_generator="llvm",
        asks_cpu=True,
        makes_archive=True,
        emit=_emit,
    )
)
