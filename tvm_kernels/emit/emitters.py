"""From a plan to the members of a bundle, by the target's emitter.

To add an emitter: an entry in EMITTERS, and its name in `Emitter` of machines/target.py and EMITTERS of
runtime/manifest.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from subbyte.errors import UsageError
from subbyte.tvm_kernels.emit.c_source import emit_source
from subbyte.tvm_kernels.emit.elf import emit_library
from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.machines import Target
from subbyte.tvm_kernels.plan import Plan

EMITTERS: dict[str, Callable[..., Emitted]] = {
    "library": emit_library,
    "source": emit_source,
}


def compile_plan(plan: Plan, target: Target, golden: Golden | None = None, *, archive: bool = False) -> Emitted:
    """Generate, compile and link a plan for a target; `archive`: with library.a, which only emitter `library` has.

    Raises UsageError, CompileError or ToolchainError.
    """
    check_archive(target, archive)
    working_on("generating code")
    emitted = EMITTERS[target.emitter](plan, target, golden, **({"archive": True} if archive else {}))
    return replace(emitted, members={**emitted.members, **golden.members()}) if golden else emitted


def check_archive(target: Target, archive: bool) -> None:
    """Raise UsageError for an archive that the target's emitter does not make."""
    if archive and target.emitter != "library":
        raise UsageError(
            f"target '{target.name}' has no static archive: its bundle holds C sources, which are compiled into a "
            f"program as they are. Leave out --archive"
        )
