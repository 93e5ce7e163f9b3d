"""Flash, RAM and instructions of models on an emulated Cortex-M4F: python benchmarks/cortex_m4.py [MODEL.onnx ...]

Without models it makes its own: ds_cnn in float and in five schemes, for 8x8 images and for the spectrograms of keyword
spotting (49x10), untrained, as neither size nor instructions depend on the weights. --operators tells where they go.

Needs arm-none-eabi-gcc and qemu-system-arm. Instructions are counted by a 25 MHz timer under `-icount shift=0`, 40 to a
tick, the same in every run; they are not cycles. --json saves the rows and the versions of the two tools, on which both
sizes and instructions depend.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click

from subbyte.files.output import write_file
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.machines import get_target

SCHEMES = ("float", "int8", "int4", "pow2", "ternary", "binary")
SIZES = {"digits": (8, 8), "keywords": (49, 10)}
BOARD = get_target("cortex-m4").board
assert BOARD is not None


def make(scheme: str, size: tuple[int, int], path: Path) -> None:
    """Write ds_cnn of that scheme, untrained, as ONNX."""
    from subbyte.export.exporter import export
    from subbyte.models import untrained

    model, examples = untrained("ds_cnn", scheme, size=size, classes=12)
    export(model, path, example=examples, check=False)


def measure(model: Path) -> dict[str, Any]:
    """Sizes in bytes and instructions of one inference, by operator too; the golden outputs are checked on the way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = compile(model, folder / "m.subbyte", target="cortex-m4", keep=folder / "kept")
        source = folder / "kept" / "source"
        subprocess.run(["make", "-s"], cwd=source, check=True)
        done = subprocess.run(
            BOARD.command("example.elf"), cwd=source, capture_output=True, text=True, timeout=600, check=False
        )
    lines = (done.stdout + done.stderr).splitlines()
    ticks = next(int(line.split()[1]) for line in lines if line.startswith("ticks"))
    operators = [line.split(maxsplit=4) for line in lines if line.startswith("operator")]
    return {
        "model": model.name,
        "flash_bytes": report.flash_bytes,
        "weights_bytes": report.weights_bytes,
        "ram_bytes": report.ram_bytes,
        "macs": report.macs,
        "instructions": ticks * BOARD.instructions_per_tick,
        "golden_ok": done.returncode == 0,
        "operators": [{"name": row[4], "instructions": int(row[3]) * BOARD.instructions_per_tick} for row in operators],
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
    click.echo(
        f"{'model':30} {'flash':>9} {'weights':>9} {'RAM':>8} {'MACs':>10} {'instructions':>13} {'per MAC':>8}  golden"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made = [(Path(folder) / f"ds_cnn_{size}_{scheme}.onnx", scheme, size) for size in sizes for scheme in schemes]
        wanted = list(models)
        if not wanted:
            for path, scheme, size in made:
                make(scheme, SIZES[size], path)
                wanted.append(path)
        for path in wanted:
            rows.append(measure(path))
            _print(rows[-1], operators)
    if output:
        tools = {name: version_of(name) for name in ("arm-none-eabi-gcc", "qemu-system-arm")}
        write_file(output, (json.dumps({"tools": tools, "rows": rows}, indent=1) + "\n").encode())


def version_of(tool: str) -> str:
    """The first line of what a tool says of its version."""
    return subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _print(row: dict[str, Any], operators: bool) -> None:
    sizes = f"{row['flash_bytes']:9,} {row['weights_bytes']:9,} {row['ram_bytes']:8,} {row['macs']:10,}"
    per_mac = row["instructions"] / max(1, row["macs"])
    golden = "equal" if row["golden_ok"] else "DIFFERENT"
    click.echo(f"{row['model']:30} {sizes} {row['instructions']:13,} {per_mac:8.2f}  {golden}")
    for operator in row["operators"] if operators else ():
        click.echo(f"  {operator['name']:28} {operator['instructions']:51,}")


if __name__ == "__main__":
    main()
