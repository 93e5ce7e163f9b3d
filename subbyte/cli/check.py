"""`subbyte check`: every stage on the same inputs, and the first layer that diverges."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("onnx", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("bundle", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", help="Test set to run; random inputs without it.")
@click.option("--data-path", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(1), help="Only the first samples.")
def check(
    checkpoint: Path, onnx: Path, bundle: Path | None, data: str | None, data_path: Path | None, limit: int | None
) -> None:
    """Compare CHECKPOINT, ONNX file and BUNDLE stage by stage: accuracy, integers, first divergent layer.

    Exits with 1 when an integer of a quantized layer differs.
    """
    import subbyte
    from subbyte.cli.tables import open_console, print_check

    report = subbyte.check(checkpoint, onnx, bundle, data=data, data_path=data_path, limit=limit)
    print_check(report, open_console())
    if report.diverged:
        raise click.exceptions.Exit(1)
