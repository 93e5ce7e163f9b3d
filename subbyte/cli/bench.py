"""`subbyte bench`: latency, per-layer profile, energy, and the verdict against a baseline."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of timing.")
@click.option("--iterations", type=click.IntRange(1), help="A number of runs instead of --seconds.")
@click.option("--baseline", type=click.Choice(["onnxruntime"]), help="Run float and int8 beside it, and say who wins.")
@click.option("--onnx", type=click.Path(exists=True, path_type=Path), help="The ONNX file the bundle is made from.")
@click.option("--float-model", type=click.Path(exists=True, path_type=Path), help="Float ONNX to compare with.")
@click.option("--data", help="With --baseline: score all three on this test set.")
@click.option("--data-path", type=click.Path(path_type=Path))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Save everything as JSON.")
def bench(
    bundle: Path,
    threads: int,
    seconds: float,
    iterations: int | None,
    baseline: str | None,
    onnx: Path | None,
    float_model: Path | None,
    data: str | None,
    data_path: Path | None,
    json_path: Path | None,
) -> None:
    """Measure BUNDLE: latency percentiles, where the time goes, energy with its provenance."""
    import subbyte
    from subbyte.cli.tables import open_console
    from subbyte.runtime.report import print_bench, print_energy_model

    console = open_console()
    result = subbyte.bench(bundle, threads=threads, seconds=seconds, iterations=iterations)
    print_bench(result, console)
    print_energy_model(result, console)
    saved: dict[str, Any] = result.to_json()
    if baseline:
        from subbyte.cli.tables import print_verdict
        from subbyte.verdict import compare

        found = compare(
            bundle, onnx=onnx, float_model=float_model, data=data, data_path=data_path, threads=threads, seconds=seconds
        )
        print_verdict(found, console)
        saved["verdict"] = found.to_json()
    if json_path:
        temporary = json_path.with_name(f".{json_path.name}.{os.getpid()}.tmp")
        temporary.write_text(jsonlib.dumps(saved, indent=1))
        temporary.replace(json_path)
        console.print(f"saved {json_path}")
