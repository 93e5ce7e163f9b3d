"""From a plan to the members of a bundle, by the target's emitter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from subbyte.errors import UsageError
from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.error_context import working_on

if TYPE_CHECKING:
    from subbyte.tvm_kernels.machines.target import Target
    from subbyte.tvm_kernels.plan import Plan


def compile_plan(plan: Plan, target: Target, golden: Golden | None = None, *, archive: bool = False) -> Emitted:
    """Generate, compile and link a plan for a target; `archive`: with library.a, which not every emitter makes.

    Raises UsageError, CompileError or ToolchainError.
    """
    check_archive(target, archive)
    working_on("generating code")
    emitted = target.emitter.emit(plan, target, golden, **({"archive": True} if archive else {}))
    return replace(emitted, members={**emitted.members, **golden.members()}) if golden else emitted


def check_archive(target: Target, archive: bool) -> None:
    """Raise UsageError for an archive that the target's emitter does not make."""
    if archive and not target.emitter.makes_archive:
        raise UsageError(
            f"target '{target.name}' has no static archive: its emitter '{target.emitter.name}' makes none, the bundle "
            f"holds {target.emitter.form.holds}. Leave out --archive"
        )
