"""`subbyte check`: every stage on the same inputs, and the first layer that diverges; or a bundle's golden run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", help="Test set to run, its labels scored on the first output; random inputs without it.")
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--limit", type=click.IntRange(1), help="Number of samples, the first ones of the data set.")
@click.option(
    "--trace",
    type=click.Path(file_okay=False, path_type=Path),
    help="With a bundle alone: a folder for the result of every operator of the golden run, as .npy files.",
)
def check(
    files: tuple[Path, ...], data: str | None, data_path: Path | None, limit: int | None, trace: Path | None
) -> None:
    """Compare a checkpoint, its ONNX file and its bundle stage by stage, or replay a bundle's golden run.

    \b
    subbyte check runs/t t.onnx t.subbyte --data digits   accuracy, integers, first divergent layer
    subbyte check runs/t t.onnx                           without a bundle
    subbyte check t.subbyte                               golden inputs and outputs, on a device without torch

    Every output is compared. The file of one step of a recurrent model (`subbyte export --step`) is run on the parts of
    the inputs of the model, without accuracy. Exits with 1 when an integer of a quantized layer, or an output beyond
    tolerance, differs. With float operators between quantized layers (softmax, layer norm), up to 5% of the integers
    may differ because of rounding ties.
    """
    from subbyte.errors import UsageError

    if len(files) == 1 and files[0].is_file():
        if data or data_path or limit:
            raise UsageError("the golden run has inputs of its own; leave --data, --data-path and --limit out")
        same = _golden(files[0], trace)
    elif trace is not None:
        raise UsageError("--trace is of the golden run: name a bundle alone")
    elif len(files) in (2, 3):
        import subbyte
        from subbyte.cli.tables import open_console, print_check

        report = subbyte.check(*files, data=data, data_path=data_path, limit=limit)
        print_check(report, open_console())
        same = not report.diverged
    else:
        raise UsageError(f"check takes CHECKPOINT ONNX [BUNDLE], or a bundle alone; got {len(files)} names")
    if not same:
        raise click.exceptions.Exit(1)


def _golden(bundle: Path, trace: Path | None) -> bool:
    """Run the golden inputs of a bundle here and print how its outputs compare; whether all are within tolerance."""
    from subbyte.runtime.session import load
    from subbyte.runtime.trace import write_trace

    if trace is not None:
        from subbyte.files.output import check_output_folder, make_folder

        check_output_folder(trace, "--trace")
        make_folder(trace)
    with load(bundle, threads=1) as session:
        if trace is not None:
            write_trace(session, trace)
        report = session.check_golden()
    for row in report.outputs:
        error = "not a number" if row.max_abs_error is None else f"{row.max_abs_error:.3g}"
        moved = f", {row.moved:,} within what a rounding tie moves" if row.moved else ""
        click.echo(f"{row.name}: {row.differing:,} of {row.elements:,} elements differ, max error {error}{moved}")
    click.echo("golden outputs: " + ("equal" if report.exact else "within tolerance" if report.ok else "DIFFERENT"))
    return report.ok
