"""Whether a model fits the board of its target; what takes most of the memory where it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from subbyte.errors import CompileError
from subbyte.tvm_kernels.abi import buffer_bytes
from subbyte.tvm_kernels.machines.board import Memory
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.memory import Buffer, aligned
from subbyte.tvm_kernels.plan import Plan

LISTED = 5  # of the largest tensors


def check_fit(plan: Plan, target: Target, sizes: Mapping[str, int] | None = None, workspace: int = 0) -> None:
    """Raise CompileError for a model that needs more flash or RAM than the target's board has; do nothing without one.

    `sizes`: bytes of the compiled model by section, and `workspace` with the scratch of its kernels; before they are
    known, what the plan alone needs. The stack, inputs and all else of a firmware are additional.
    """
    board = target.board
    if board is None:
        return
    section = {"text": len(plan.weights), "data": 0, "bss": 0} | dict(sizes or {})
    flash = section["text"] + section["data"]
    ram = {
        "intermediate tensors": plan.arena_bytes,
        "workspace": max(workspace, plan.workspace_bytes),
        "states": plan.state_bytes,
        "outputs": sum(aligned(tensor.nbytes) for tensor in plan.outputs),
        "variables": section["data"] + section["bss"],
    }
    lacking = []
    if flash > board.flash.nbytes:
        lacking.append(f"{_lack('flash', flash, board.flash)}. Largest weights: {_largest(_weights(plan))}.")
    if sum(ram.values()) > board.ram.nbytes:
        parts = ", ".join(f"{what} {nbytes:,}" for what, nbytes in ram.items() if nbytes)
        lacking.append(f"{_lack('RAM', sum(ram.values()), board.ram)}: {parts}. {_peak(plan)}.")
    if lacking:
        raise CompileError(
            f"the model does not fit board '{board.name}' of target '{target.name}'. {' '.join(lacking)} "
            f"Take a smaller network or input, or a scheme with fewer bits"
        )


def _lack(what: str, needed: int, memory: Memory) -> str:
    return f"{what}: {needed:,} bytes needed, {memory.nbytes:,} there, {needed - memory.nbytes:,} missing"


def _largest(tensors: Iterable[tuple[str, int]]) -> str:
    rows = sorted(tensors, key=lambda row: -row[1])
    more = f", and {len(rows) - LISTED} smaller ones" if len(rows) > LISTED else ""
    return ", ".join(f"'{name}' {nbytes:,}" for name, nbytes in rows[:LISTED]) + more


def _weights(plan: Plan) -> Iterator[tuple[str, int]]:
    """Each operator that has constants, with their bytes."""
    for call in plan.calls:
        pairs = zip(call.arguments, call.function.params, strict=True)
        nbytes = sum(buffer_bytes(param) for argument, param in pairs if argument.space == "weights")
        if nbytes:
            yield call.name, nbytes


def _peak(plan: Plan) -> str:
    buffers = live_tensors(plan)
    if not buffers:
        return "No tensor lives between two operators"
    at = max(range(len(plan.calls)), key=lambda i: sum(b.nbytes for b in buffers if b.first <= i <= b.last))
    live = ((b.name, b.nbytes) for b in buffers if b.first <= at <= b.last)
    return f"Live at '{plan.calls[at].name}', where most bytes are: {_largest(live)}"


def live_tensors(plan: Plan) -> list[Buffer]:
    """The tensors of the arena, each live from the call that writes it to the last one that reads it."""
    found: list[tuple[int, Buffer]] = []  # with offsets, in the order of the calls
    for index, call in enumerate(plan.calls):
        written = {tensor.place for tensor in call.outputs}
        for argument in call.arguments:
            if argument.space == "arena" and argument not in written:
                _extend(found, argument.offset, index)
        for tensor in call.outputs:
            if tensor.place.space == "arena":
                found.append((tensor.place.offset, Buffer(tensor.name, tensor.nbytes, index, index)))
    return [buffer for _, buffer in found]


def _extend(found: list[tuple[int, Buffer]], offset: int, last: int) -> None:
    """Let the tensor that was written last at that offset live to call `last`."""
    for i, (start, buffer) in reversed(list(enumerate(found))):
        if start <= offset < start + buffer.nbytes:
            found[i] = start, replace(buffer, last=last)
            return
