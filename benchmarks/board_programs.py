"""What benchmarks of emulated boards share: untrained models, the example program of each, a table, saved rows.

Untrained, as neither size nor instructions depend on the weights.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subbyte.files.output import write_file
from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.machines import get_target

SIZES = {"digits": (8, 8), "keywords": (49, 10)}  # images, and spectrograms of keyword spotting


@contextmanager
def untrained_file(name: str, scheme: str, size: str) -> Iterator[Path]:
    """A network of the zoo of that scheme, for inputs of a size of SIZES, as NAME_SIZE_SCHEME.onnx."""
    from subbyte.export.exporter import export
    from subbyte.models import untrained

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}_{size}_{scheme}.onnx"
        model, examples = untrained(name, scheme, size=SIZES[size], classes=12)
        export(model, path, example=examples, check=False)
        yield path


@contextmanager
def sources(model: Path, target: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """A model's name, sizes in bytes and multiply-accumulates, and the folder of its C sources."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = compile(model, folder / "m.subbyte", target=target, keep=folder / "kept")
        yield _sizes(model, report), folder / "kept" / "source"


def _sizes(model: Path, report: CompileReport) -> dict[str, Any]:
    return {
        "model": model.name,
        "flash_bytes": report.flash_bytes,
        "weights_bytes": report.weights_bytes,
        # Of the model; a program's inputs, outputs, stack and variables do not depend on how it computes.
        "ram_bytes": sum(report.ram[part] for part in ("intermediate tensors", "workspace", "states")),
        "macs": report.macs,
    }


def output_of(folder: Path, *command: str) -> str:
    """What a command prints to both outputs; raises CalledProcessError where it fails."""
    done = subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    return done.stdout


def run(folder: Path, target: str, program: str = "example.elf") -> tuple[dict[str, int], str]:
    """The numbers that a program prints after a word, alone in a line, and all its text.

    `instructions` is one of them: of an inference. Raises where the outputs are not the golden ones.
    """
    board = get_target(target).board
    assert board is not None
    said = output_of(folder, *board.command(program))
    assert "golden ok" in said, said
    numbers = {word: int(number) for word, number in re.findall(r"^(\w+) (\d+)$", said, re.MULTILINE)}
    return {**numbers, "instructions": numbers["ticks"] * board.instructions_per_tick}, said


def save(path: Path, tools: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows and the versions of the tools as JSON."""
    versions = {tool: output_of(Path(), tool, "--version").splitlines()[0] for tool in tools}
    write_file(path, (json.dumps({"tools": versions, "rows": rows}, indent=1) + "\n").encode())
