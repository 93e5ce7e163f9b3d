"""The C functions of a plan: each distinct kernel once, its arguments, and the workspace that all of them share."""

from __future__ import annotations

import re
from dataclasses import dataclass

import tvm_ffi

from subbyte.errors import CompileError
from subbyte.tvm_kernels.abi import CFunction, Wanted, buffer_bytes
from subbyte.tvm_kernels.emit.names import names_of
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.plan import SPACES, Argument, KernelCall, Plan

MAX_ARGUMENTS = 32  # SUBBYTE_MAX_ARGUMENTS of runtime/c/subbyte.h


@dataclass(frozen=True, eq=False)
class Symbols:
    """The distinct kernels of a plan, and which one each call uses."""

    wanted: tuple[Wanted, ...]
    of_call: tuple[int, ...]


def _overlap(first: tuple[Argument, int], second: tuple[Argument, int]) -> bool:
    (one, one_bytes), (other, other_bytes) = first, second
    if one.space != other.space:
        return False
    if SPACES[one.space].by_index:
        return one.offset == other.offset
    return one.offset < other.offset + other_bytes and other.offset < one.offset + one_bytes


def _is_distinct(call: KernelCall) -> bool:
    """Whether no result of the call overlaps another of its arguments, so that C may assume it."""
    pieces = [
        (argument, buffer_bytes(param)) for argument, param in zip(call.arguments, call.function.params, strict=True)
    ]
    results = {output.place for output in call.outputs}
    for i, piece in enumerate(pieces):
        for other in pieces[:i]:
            written = not results or piece[0] in results or other[0] in results or piece[0].space == "workspace"
            if written and _overlap(piece, other):
                return False
    return True


def symbols(plan: Plan) -> Symbols:
    """Kernels of a plan, each distinct TIR once; raises CompileError for a call that the C core could not make."""
    wanted: list[Wanted] = []
    seen: dict[tuple[int, bool], list[int]] = {}
    of_call = []
    for call in plan.calls:
        if len(call.arguments) != len(call.function.params):
            raise CompileError(
                f"'{call.name}': kernel '{call.kernel}' takes {len(call.function.params)} arguments, the plan gives "
                f"{len(call.arguments)}"
            )
        bare = call.function.with_attr("global_symbol", "kernel")
        distinct = _is_distinct(call)
        same = seen.setdefault((tvm_ffi.structural_hash(bare), distinct), [])
        index = next((i for i in same if tvm_ffi.structural_equal(wanted[i].function, bare)), None)
        if index is None:
            index = len(wanted)
            same.append(index)
            name = re.sub(r"\W+", "_", call.kernel).strip("_") or "kernel"
            symbol = names_of(plan.name).symbol(f"k{index}_{name}")
            wanted.append(Wanted(symbol, bare, distinct, call.name, call.kernel))
        of_call.append(index)
    return Symbols(tuple(wanted), tuple(of_call))


def check_arguments(plan: Plan, made: Symbols, signatures: tuple[CFunction, ...]) -> None:
    """Refuse what the C core has no room for."""
    for call, index in zip(plan.calls, made.of_call, strict=True):
        count = len(call.arguments) + bool(signatures[index].scratch)
        if count > MAX_ARGUMENTS:
            raise CompileError(f"'{call.name}' has {count} arguments; the C core takes {MAX_ARGUMENTS}")


def scratch_offset(plan: Plan) -> int:
    """The offset of the scratch that TIR allocates in a thread's workspace: after the plan's own."""
    return aligned(plan.workspace_bytes)


def workspace_bytes(plan: Plan, signatures: tuple[CFunction, ...]) -> int:
    """Workspace of one thread: the plan's, then the largest scratch."""
    scratch = max((s.scratch_bytes for s in signatures), default=0)
    return scratch_offset(plan) + scratch if scratch else plan.workspace_bytes
