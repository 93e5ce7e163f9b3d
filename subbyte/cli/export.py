"""`subbyte export`: a checkpoint to a standard ONNX file, checked before it is kept."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from subbyte.errors import ExportWarning


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A file, a pipe or /dev/stdout.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Batch size of the file (static).")
@click.option(
    "--step", is_flag=True, help="Of a recurrent model: one step, with the states as inputs and outputs of the file."
)
@click.option("--check/--no-check", default=True, show_default=True, help="Compare with torch and onnxruntime first.")
def export(checkpoint: Path, output: Path, batch: int, step: bool, check: bool) -> None:
    """Write the CHECKPOINT folder as ONNX that runs in plain onnxruntime, low-bit weights packed.

    A recurrent model is written with all steps of a sequence; with --step, as one step to be run on each part of a
    stream.
    """
    import subbyte
    from subbyte.cli.output import printing_beside

    with printing_beside(output):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExportWarning)  # the report says the same
            report = subbyte.export(checkpoint, output, batch=batch, check=check, step=step)
        click.echo(str(report))
