"""The emitter `c_source`: the whole model as C99, which any compiler builds into a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subbyte.runtime.program_form import FORMS
from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.emit.emitter import Emitter, register_emitter

if TYPE_CHECKING:
    from subbyte.tvm_kernels.machines.target import Target
    from subbyte.tvm_kernels.plan import Plan


def _emit(plan: Plan, target: Target, golden: Golden | None = None) -> Emitted:
    from subbyte.tvm_kernels.emit.source_files import emit_source  # imports TVM

    return emit_source(plan, target, golden)


C_SOURCE = register_emitter(
    Emitter(
        name="c_source",
        summary="C99 files with no heap, no threads, and of libc only `<string.h>` and `<math.h>`",
        form=FORMS["source"],
        code_generator="c",
        asks_cpu=False,
        makes_archive=False,
        emit=_emit,
    )
)
