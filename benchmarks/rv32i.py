"""Instructions, code and RAM of models on an emulated RISC-V CPU that cannot multiply: python benchmarks/rv32i.py

ds_cnn for 8x8 images and for the spectrograms of keyword spotting (49x10), and resnet8 for 8x8 images: with int8
weights, multiplied by software, and with weights whose products are shifts and additions. All are untrained, and first
and last layers are int8 in every scheme. Each run checks its golden outputs.

Instructions are those that the emulator retires in one inference (rdinstret, `-icount shift=0`). Two parts of them are
counted in a second program, the same but for this: in kernels.o, every call of a function of libgcc goes through one
that reads the counter before and after it. `float` is what functions of float arithmetic take: scales, biases and
roundings after the sums. `multiply` is what __mulsi3 takes.

Needs riscv64-unknown-elf-gcc, picolibc and qemu-system-riscv32. --json saves the rows and the versions of the tools.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from board_programs import output_of, run, save, sources, untrained_file

TARGET = "rv32i"
TOOLS = "riscv64-unknown-elf-"
SCHEMES = ("int8", "pow2", "ternary", "binary")
MODELS = (("ds_cnn", "digits"), ("ds_cnn", "keywords"), ("resnet8", "digits"))
KINDS = {"float": re.compile(r"__\w*[sd]f\w*"), "multiply": re.compile(r"__mul[sd]i3")}

# In place of a function that kernels.o calls: arguments and result stay in their registers.
_COUNTED = """
.globl counted_{function}
counted_{function}:
  addi sp, sp, -16
  sw ra, 12(sp)
  .insn i 0x73, 2, t0, x0, -1022
  sw t0, 8(sp)
  call {function}
  .insn i 0x73, 2, t1, x0, -1022
  lw t0, 8(sp)
  sub t1, t1, t0
  la t0, counted
  lw t2, {place}(t0)
  add t2, t2, t1
  sw t2, {place}(t0)
  lw t2, {place} + 4(t0)
  addi t2, t2, 1
  sw t2, {place} + 4(t0)
  lw ra, 12(sp)
  addi sp, sp, 16
  ret
"""
# counted[0] is of a function that only returns: but for its one instruction, that is what a reading adds. example.c
# runs the model twice.
_MAIN = """#include "console.h"
struct {{ uint32_t instructions, calls; }} counted[{count}];
int example_main(void);
void counted_nothing(void);
int main(void) {{
  static const char *const kinds[{count}] = {{{kinds}}};
  const int status = example_main();
  int i;
  counted_nothing();
  for (i = 1; i < {count}; ++i) {{
    console_text(kinds[i]);
    console_number((counted[i].instructions - counted[i].calls * (counted[0].instructions - 1)) / 2);
    console_text("\\n");
  }}
  return status;
}}
"""


def measure(model: Path) -> dict[str, Any]:
    """Sizes in bytes and instructions of one inference, in all and of each kind."""
    with sources(model, TARGET) as (sizes, folder):
        command = shlex.split(output_of(folder, "make", "-n", "example.elf"))
        output_of(folder, *command)
        whole, _ = run(folder, TARGET)
        _count_calls(folder, command)
        counted, _ = run(folder, TARGET, "counted.elf")
    return {**sizes, "instructions": whole["instructions"], **{kind: counted[kind] for kind in KINDS}}


def _count_calls(source: Path, command: Sequence[str]) -> None:
    """Build counted.elf as `command` builds example.elf."""
    files = [word for word in command if word.endswith(".c")]
    rest = [word for word in command[: command.index("-o")] if word not in files]
    output_of(source, *rest, "-c", "kernels.c", "-o", "kernels.o")
    called = [line.split()[-1] for line in output_of(source, f"{TOOLS}nm", "-u", "kernels.o").splitlines()]
    places = {name: 8 * (1 + i) for name in called for i, kind in enumerate(KINDS.values()) if kind.fullmatch(name)}
    renamed = [f"--redefine-sym={name}=counted_{name}" for name in places]
    output_of(source, f"{TOOLS}objcopy", *renamed, "kernels.o", "kernels_counted.o")
    output_of(source, *rest, "-Dmain=example_main", "-c", "example.c", "-o", "example.o")
    parts = [_COUNTED.format(function=name, place=place) for name, place in {"nothing": 0, **places}.items()]
    (source / "counted.S").write_text(".text\nnothing: ret\n" + "".join(parts))
    kinds = ", ".join(['""', *(f'"{kind} "' for kind in KINDS)])
    (source / "counted.c").write_text(_MAIN.format(count=1 + len(KINDS), kinds=kinds))
    unchanged = [name for name in files if name not in ("kernels.c", "example.c")]
    made = ["kernels_counted.o", "example.o", "counted.S", "counted.c"]
    output_of(source, *rest, "-o", "counted.elf", *made, *unchanged, "-lm")


@click.command()
@click.option("--scheme", "schemes", multiple=True, default=SCHEMES, help="Repeat for more.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Save the results there.")
def main(schemes: tuple[str, ...], output: Path | None) -> None:
    header = f"{'model':28} {'flash':>8} {'RAM':>7} {'MACs':>10}"
    click.echo(f"{header} {'instructions':>13} {'float':>12} {'multiply':>12} {'the rest':>12}")
    rows = []
    for name, size in MODELS:
        for scheme in schemes:
            with untrained_file(name, scheme, size) as path:
                row = measure(path)
            rows.append(row)
            rest = row["instructions"] - sum(row[kind] for kind in KINDS)
            sizes = f"{row['flash_bytes']:8,} {row['ram_bytes']:7,} {row['macs']:10,} {row['instructions']:13,}"
            kinds = " ".join(f"{row[kind]:12,}" for kind in KINDS)
            click.echo(f"{path.stem:28} {sizes} {kinds} {rest:12,}")
    if output:
        save(output, (f"{TOOLS}gcc", "qemu-system-riscv32"), rows)


if __name__ == "__main__":
    main()
