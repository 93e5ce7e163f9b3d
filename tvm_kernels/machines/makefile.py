"""The Makefile of C sources: it builds their example and runs it, on a board or on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from subbyte.tvm_kernels.machines.architecture import beside
from subbyte.tvm_kernels.machines.target import Target


def makefile(target: Target, flags: Sequence[str], sources: Sequence[str]) -> str:
    """Its text; `flags`: for the C compiler beside those of the target and of its board."""
    compiler, board = target.compiler.command if target.compiler else "cc", target.board
    flags = [*target.architecture.c_flags(target, "gcc"), *flags, *(board.c_flags if board else ())]
    needed = [*sources, *(board.needed if board else ())]
    link = " ".join(("$(CC) $(CFLAGS)", *(board.link_options if board else ())))
    run = " ".join(board.command("$<") if board else ["./$<"])
    return f"""# Builds the example for {target.name}; `make size` tells flash and RAM, `make run` runs it.
CC = {compiler}
CFLAGS = {" ".join(flags)}
example.elf: {" ".join(needed)}
\t{link} -o $@ $(filter %.c,$^) -lm
size: example.elf
\t{beside(compiler, "size")} $<
run: example.elf
\t{run}
"""
