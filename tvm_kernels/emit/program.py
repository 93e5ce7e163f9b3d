"""From a plan to the members of a bundle, by the target's emitter. To add an emitter, add an entry to EMITTERS."""

from __future__ import annotations

from collections.abc import Callable

from subbyte.tvm_kernels.emit.emitted import Emitted, Golden
from subbyte.tvm_kernels.emit.library import emit_library
from subbyte.tvm_kernels.emit.source import emit_source
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.targets import Target

EMITTERS: dict[str, Callable[[Plan, Target, Golden | None], Emitted]] = {
    "library": emit_library,
    "source": emit_source,
}


def compile_plan(plan: Plan, target: Target, golden: Golden | None = None) -> Emitted:
    """Generate, compile and link a plan for a target; raises CompileError or ToolchainError."""
    working_on("generating code")
    return EMITTERS[target.emitter](plan, target, golden)
