"""Flash, RAM and instructions of models on an emulated Cortex-M4F: python benchmarks/cortex_m4.py [MODEL.onnx ...]

Without models it makes its own: ds_cnn in float and in five schemes, for 8x8 images and for the spectrograms of keyword
spotting (49x10), untrained. --operators tells where the instructions go. Each run checks its golden outputs.

Needs arm-none-eabi-gcc and qemu-system-arm. Instructions are counted by a 25 MHz timer under `-icount shift=0`, 40 to a
tick, the same in every run; they are not cycles. --json saves the rows and the versions of the two tools, on which both
sizes and instructions depend.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from board_programs import SIZES, output_of, run, save, sources, untrained_file

from subbyte.tvm_kernels.machines import get_target

TARGET = "cortex-m4"
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")
SCHEMES = ("float", "int8", "int4", "pow2", "ternary", "binary")


def measure(model: Path) -> dict[str, Any]:
    """Sizes in bytes and instructions of one inference, by operator too."""
    board = get_target(TARGET).board
    assert board is not None
    with sources(model, TARGET) as (sizes, folder):
        output_of(folder, "make", "-s")
        numbers, said = run(folder, TARGET)
    operators = [line.split(maxsplit=4) for line in said.splitlines() if line.startswith("operator")]
    return {
        **sizes,
        "instructions": numbers["instructions"],
        "operators": [{"name": row[4], "instructions": int(row[3]) * board.instructions_per_tick} for row in operators],
    }


@click.command()
@click.argument("models", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--scheme", "schemes", multiple=True, default=SCHEMES, help="Of the models made here; repeat for more.")
@click.option("--size", "sizes", multiple=True, default=tuple(SIZES), type=click.Choice(tuple(SIZES)))
@click.option("--operators", is_flag=True, help="Instructions of each operator too.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Save the results there.")
def main(
    models: tuple[Path, ...], schemes: tuple[str, ...], sizes: tuple[str, ...], operators: bool, output: Path | None
) -> None:
    header = f"{'model':30} {'flash':>9} {'weights':>9} {'RAM':>8} {'MACs':>10}"
    click.echo(f"{header} {'instructions':>13} {'per MAC':>8}")
    made = [] if models else [untrained_file("ds_cnn", scheme, size) for size in sizes for scheme in schemes]
    rows = []
    for file in (*map(nullcontext, models), *made):
        with file as path:
            rows.append(measure(path))
        _print(rows[-1], operators)
    if output:
        save(output, TOOLS, rows)


def _print(row: dict[str, Any], operators: bool) -> None:
    sizes = f"{row['flash_bytes']:9,} {row['weights_bytes']:9,} {row['ram_bytes']:8,} {row['macs']:10,}"
    click.echo(f"{row['model']:30} {sizes} {row['instructions']:13,} {row['instructions'] / max(1, row['macs']):8.2f}")
    for operator in row["operators"] if operators else ():
        click.echo(f"  {operator['name']:28} {operator['instructions']:51,}")


if __name__ == "__main__":
    main()
