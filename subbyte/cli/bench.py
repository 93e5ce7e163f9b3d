"""`subbyte bench`: latency, per-layer profile, energy, and the verdict against a baseline."""

from __future__ import annotations

import json as jsonlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from subbyte.judge.verdict import Comparison


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds", default=2.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Duration of timing."
)
@click.option("--iterations", type=click.IntRange(1), help="Number of runs, instead of --seconds.")
@click.option(
    "--meter",
    default="auto",
    show_default=True,
    help="Energy meter: rapl, hwmon (a board's total), hwmon:RAIL+RAIL, zeus, csv:PATH (the log of an external meter), "
    "auto (rapl or hwmon), none.",
)
@click.option(
    "--baseline", type=click.Choice(["onnxruntime"]), help="Compare with the float32 and int8 model in one run."
)
@click.option(
    "--onnx",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The ONNX file that the bundle was compiled from.",
)
@click.option(
    "--float-model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Float32 ONNX file to compare with.",
)
@click.option("--data", help="With --baseline: score the first outputs on this test set. [default: the one trained on]")
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Save the result as JSON.")
def bench(
    bundle: Path,
    threads: int,
    seconds: float,
    iterations: int | None,
    meter: str,
    baseline: str | None,
    onnx: Path | None,
    float_model: Path | None,
    data: str | None,
    data_path: Path | None,
    json_path: Path | None,
) -> None:
    """Measure BUNDLE: latency percentiles, where the time goes, energy with its provenance."""
    import subbyte
    from subbyte.cli.output import printing_beside
    from subbyte.cli.tables import open_console
    from subbyte.errors import UsageError
    from subbyte.files.output import checked_output, write_file
    from subbyte.runtime.report import print_bench, print_energy_model

    given = {"--onnx": onnx, "--float-model": float_model, "--data": data, "--data-path": data_path}
    for option, value in given.items():
        if value is not None and not baseline:
            raise UsageError(f"{option} says what to compare with: it needs --baseline onnxruntime")
    with checked_output(json_path, "--json", bundle, onnx, float_model), printing_beside(json_path):
        ready = _ready_to_compare(bundle, onnx, float_model, data, data_path) if baseline else None
        console = open_console(markup=True)
        result = subbyte.bench(bundle, threads=threads, seconds=seconds, iterations=iterations, meter=meter)
        print_bench(result, console)
        print_energy_model(result, console)
        saved: dict[str, Any] = result.to_json()
        try:
            if ready is not None:
                from subbyte.cli.tables import print_verdict
                from subbyte.judge.verdict import compare

                found = compare(ready, threads=threads, seconds=seconds)
                print_verdict(found, open_console())
                saved["verdict"] = found.to_json()
        finally:  # the comparison may fail after minutes of measuring
            if json_path is not None:
                write_file(json_path, jsonlib.dumps(saved, indent=1).encode())
        if json_path is not None:
            click.echo(f"saved {json_path}")


def _ready_to_compare(
    bundle: Path, onnx: Path | None, float_model: Path | None, data: str | None, data_path: Path | None
) -> Comparison:
    """What the verdict needs, looked for before anything is measured."""
    from subbyte.judge.verdict import prepare
    from subbyte.onnx_files.onnxruntime import onnxruntime

    import_module("onnx")
    onnxruntime()
    return prepare(bundle, onnx=onnx, float_model=float_model, data=data, data_path=data_path)
