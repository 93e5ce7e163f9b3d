"""The loops in the machine code of a kernel in which sums are accumulated, from the disassembly of kernels.o.

A loop is a branch to an earlier instruction and all that can reach it without passing its destination; innermost are
those with no loop inside. An innermost loop accumulates if one of its instructions comes from a statement of kernels.c
that stores an element computed from itself, `x[i] = (x[i] + ...)`: -g tells the line of each instruction, and changes
none. Where no statement does (counts in bit slices are stored word by word), every innermost loop counts as one.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "riscv64-unknown-elf-"
_FUNCTION = re.compile(r"^Disassembly of section \.text\.(\w+):$")
_LINE = re.compile(r"^\S*/kernels\.c:(\d+)")
_INSTRUCTION = re.compile(r"^ +([0-9a-f]+):\t[0-9a-f]+ +\t(\S+)(?:\t(.*))?$")
_RELOCATION = re.compile(r"^\t\t\t[0-9a-f]+: (R_RISCV_CALL\w*)\t(\S+)$")
_BRANCHES = {"beq", "bne", "blt", "bge", "bltu", "bgeu"}
_ACCUMULATES = re.compile(r"^ *(\S.*\]) = \(+\1 [-+&|^]")


@dataclass
class Instruction:
    """One instruction; `called` is the function that it is the first half of a call of."""

    address: int
    name: str
    operands: str
    line: int
    called: str = ""

    @property
    def destination(self) -> int | None:
        """Where a branch or jump goes, or None."""
        jumps = self.name in _BRANCHES or (self.name == "jal" and self.operands.startswith("zero,"))
        return int(self.operands.split(",")[-1].split()[0], 16) if jumps else None

    @property
    def links(self) -> bool:
        """Whether it calls: it keeps the address to come back to."""
        return self.name in ("jal", "jalr") and not self.operands.startswith("zero,")

    @property
    def ends(self) -> bool:
        """Whether the next instruction is not executed after it."""
        return self.name in ("jal", "jalr") and self.operands.startswith("zero,")


@dataclass
class Function:
    """The instructions of a kernel, by address."""

    name: str
    code: dict[int, Instruction] = field(default_factory=dict)

    def loops(self) -> list[list[Instruction]]:
        """The innermost loops."""
        addresses = sorted(self.code)
        before: dict[int, list[int]] = {address: [] for address in addresses}
        for here, following in zip(addresses, [*addresses[1:], None], strict=True):
            instruction = self.code[here]
            if instruction.destination is not None:
                before[instruction.destination].append(here)
            if following is not None and not instruction.ends:
                before[following].append(here)
        bodies: dict[int, set[int]] = {}
        for header in addresses:
            body = {header}
            waiting = [end for end in before[header] if end >= header]
            if not waiting:
                continue
            while waiting:
                address = waiting.pop()
                if address not in body:
                    body.add(address)
                    waiting += before[address]
            if addresses[0] not in body or header == addresses[0]:  # else the branch is no loop's
                bodies[header] = body
        innermost = [body for header, body in bodies.items() if not (body & bodies.keys()) - {header}]
        return [[self.code[address] for address in sorted(body)] for body in innermost]


def functions(folder: Path, flags: Sequence[str]) -> tuple[dict[str, Function], list[str]]:
    """The functions of kernels.c in `folder`, compiled with these flags and -g, and the lines of the file."""
    object_file = folder / "kernels_g.o"
    subprocess.run([f"{PREFIX}gcc", *flags, "-g", "-c", "kernels.c", "-o", object_file], cwd=folder, check=True)
    command = [f"{PREFIX}objdump", "-dlr", "-M", "no-aliases", str(object_file)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Function] = {}
    function, line, last = Function(""), 0, None
    for text in listed.splitlines():
        if match := _FUNCTION.match(text):
            function = found.setdefault(match[1], Function(match[1]))
        elif match := _LINE.match(text):
            line = int(match[1])
        elif match := _INSTRUCTION.match(text):
            last = Instruction(int(match[1], 16), match[2], match[3] or "", line)
            function.code[last.address] = last
        elif (match := _RELOCATION.match(text)) and last is not None:
            last.called = match[2]
    return found, (folder / "kernels.c").read_text().splitlines()


def accumulating(function: Function, source: Sequence[str]) -> list[list[Instruction]]:
    """The innermost loops of a function that accumulate."""
    loops = function.loops()
    lines = {number for number, text in enumerate(source, 1) if _ACCUMULATES.match(text)}
    found = [loop for loop in loops if any(instruction.line in lines for instruction in loop)]
    return found or loops


def multiplications_and_calls(loop: Sequence[Instruction]) -> list[str]:
    """What a loop without a multiplication must not have: `mul` of any kind, and calls by the function's name."""
    names = {one.called for one in loop if one.called} | {one.name for one in loop if one.name.startswith("mul")}
    # The second half of a call follows the first: any other is one of an unknown function.
    halves = [one.address for one in loop if one.called]
    return sorted(names | {one.name for one in loop if one.links and one.address - 4 not in halves})
