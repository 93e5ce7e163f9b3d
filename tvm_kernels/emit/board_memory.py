"""How much memory a program of a model needs, whether its target's board has it, and what takes most of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple

from subbyte.errors import CompileError, ToolchainError
from subbyte.runtime.manifest import MODEL_DTYPES
from subbyte.tvm_kernels.abi import buffer_bytes
from subbyte.tvm_kernels.machines.board import MEMORY_SCRIPT, Board, Memory
from subbyte.tvm_kernels.machines.target import Target
from subbyte.tvm_kernels.memory import Buffer, aligned
from subbyte.tvm_kernels.plan import Plan, Tensor
from subbyte.tvm_kernels.toolchain import Toolchain, run

LISTED = 5  # of the largest tensors
MORE = 1 << 30  # bytes of flash and RAM, where the linker is asked what it needs


def buffers_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the inputs, or outputs, of a model, each aligned."""
    return sum(aligned(prod(tensor.shape) * MODEL_DTYPES[tensor.dtype]) for tensor in tensors)


def ram_of(plan: Plan, workspace: int, board: Board | None = None, linked: int | None = None) -> dict[str, int]:
    """Bytes of RAM that a program of the model needs, by what they hold: it has one model and runs it in one thread.

    `workspace`: with the scratch of the kernels. On a board also its stack and, where its linker could be asked,
    variables: all else that is `linked`, of the model, the C core, the example and the C library.
    """
    parts = {
        "intermediate tensors": plan.arena_bytes,
        "workspace": workspace,
        "states": plan.state_bytes,
        "inputs": buffers_bytes(plan.inputs),
        "outputs": buffers_bytes(plan.outputs),
        "stack": board.stack if board else 0,
    }
    return parts if linked is None else {**parts, "variables": linked - sum(parts.values())}


class Linked(NamedTuple):
    """Bytes of a program's memory, as the linker places it."""

    flash: int
    ram: int


def linked_memory(board: Board, toolchain: Toolchain, arguments: Sequence[str], folder: Path) -> Linked:
    """Memory of the example of C sources, golden data included, linked in a folder that has all of them.

    It is linked for a board with more memory, so that it says how much is missing. `arguments`: of the C compiler.
    """
    (folder / MEMORY_SCRIPT).write_text(board.memory_script(MORE))
    command = [*toolchain.compiler, *toolchain.c_flags, *board.c_flags, *arguments]
    sources = [name for name in board.needed if name.endswith(".c")]
    link = [*board.link_options, "-Wl,--no-check-sections", "-Wl,--print-memory-usage"]
    said = run([*command, *sources, *link, "-o", "example.elf", "-lm"], folder)
    used = {
        region: int(number) * {"B": 1, "KB": 1 << 10, "MB": 1 << 20}[unit]
        for region, number, unit in re.findall(r"^ *(FLASH|RAM): *(\d+) (B|KB|MB)", said, re.MULTILINE)
    }
    if len(used) != len(Linked._fields):
        raise ToolchainError(f"{toolchain} does not say how much memory a program takes: {said[:200]!r}")
    return Linked(used["FLASH"], used["RAM"])


def example_notes(board: Board | None, linked: Linked | None) -> tuple[str, ...]:
    """A line for the report where the model fits and its example does not."""
    if board is None or linked is None or linked.flash <= board.flash.nbytes:
        return ()
    lacks = _lack("flash", linked.flash, board.flash)
    return (f"the example, which holds golden data, does not fit board '{board.name}', though the model does. {lacks}",)


def check_fit(
    plan: Plan, target: Target, workspace: int = 0, linked: int | None = None, flash: int | None = None
) -> None:
    """Raise CompileError for a model that needs more flash or RAM than the target's board has; do nothing without one.

    RAM: `ram_of`. `flash`: code and constants of the model; a program's own and golden data are additional. Before
    they are known, what the plan alone needs.
    """
    board = target.board
    if board is None:
        return
    flash = len(plan.weights) if flash is None else flash
    ram = ram_of(plan, max(workspace, plan.workspace_bytes), board, linked)
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
