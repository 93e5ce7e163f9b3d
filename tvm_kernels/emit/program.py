"""What every file format of a program has: kernels as objects or C, the table that calls them, their workspace."""

from __future__ import annotations

from dataclasses import dataclass

from subbyte.tvm_kernels.abi import compile_objects, compile_source
from subbyte.tvm_kernels.emit.model_c import model_c
from subbyte.tvm_kernels.emit.symbols import check_arguments, symbols, workspace_bytes
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.plan import Plan


@dataclass(frozen=True, eq=False)
class Program:
    """A plan after code generation."""

    kernels: bytes  # an object file, or C, as the target's code generator makes; empty for a plan without calls
    model_c: str  # the table of operators, which the plan interpreter executes
    tiles: tuple[int, ...]  # of each call of the plan
    workspace_bytes: int  # of a thread: the plan's, and the scratch of kernels after it


def generate(plan: Plan, target: Target) -> Program:
    """Generate the code of a plan; raises CompileError for a kernel that cannot be generated or called."""
    made = symbols(plan)
    compiled = compile_source if target.emitter.code_generator == "c" else compile_objects
    kernels = compiled(made.wanted, target.tvm_target()) if made.wanted else None
    signatures = kernels.signatures if kernels else ()
    check_arguments(plan, made, signatures)
    return Program(
        kernels=kernels.code if kernels else b"",
        model_c=model_c(plan, target, made, signatures),
        tiles=tuple(signatures[index].tiles for index in made.of_call),
        workspace_bytes=workspace_bytes(plan, signatures),
    )
