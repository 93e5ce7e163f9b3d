"""`subbyte quantize`: a float checkpoint or ONNX file to a quantized one, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the new checkpoint; a file for ONNX.",
)
@click.option("--scheme", help="How layers are quantized; see `subbyte schemes`.  [default: int8]")
@click.option("--scheme-option", "scheme_options", multiple=True, metavar="NAME=VALUE", help="An option of the scheme.")
@click.option(
    "--recipe", type=click.Path(exists=True, dir_okay=False), help="YAML or JSON file of rules, in place of a scheme."
)
@click.option("--data", help="Data set to calibrate and test with.  [default: the one trained on]")
@click.option("--data-path", type=click.Path(), help="Its files, for a data set that is not installed.")
@click.option("--data-option", "data_options", multiple=True, metavar="NAME=VALUE", help="An option of the data set.")
@click.option(
    "--samples", type=click.IntRange(1), help="Calibration samples.  [default: 512, or all if there are fewer]"
)
@click.option("--batch-size", type=click.IntRange(1), help="Calibration samples that run at once.  [default: 64]")
@click.option("--seed", type=click.IntRange(0), help="Of which samples.  [default: 0]")
@click.option(
    "--calibrator",
    help="Chooses the steps of activations: min-max, percentile, mse, entropy, or with options: "
    "'percentile(percent=99.9)'.  [default: mse]",
)
@click.option("--weights", help="Calibrator of weights: min-max, mse or percentile.  [default: mse]")
@click.option(
    "--step",
    "steps",
    multiple=True,
    help="A step before or after the calibration, with its options, e.g. 'adaround(iterations=500)'; several in their "
    "order.",
)
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint that --output holds.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def quantize(source: Path, output: Path, overwrite: bool, quiet: bool, **given: Any) -> None:
    """Quantize SOURCE, a float checkpoint or ONNX file, without training, and save the result as one of its kind.

    \b
    subbyte train resnet8 --data digits --scheme float --out runs/float
    subbyte quantize runs/float --scheme int8 --calibrator entropy -o runs/int8
    subbyte quantize runs/float --recipe r.yaml --step adaround --step bias-correction -o runs/w4
    subbyte quantize float.onnx --data digits --scheme int8 -o int8.onnx
    """
    import subbyte
    from subbyte.cli.named_values import named_values

    asked = {name: value for name, value in given.items() if value not in (None, ())}
    for name in [name for name in asked if name.endswith("_options")]:
        asked[name] = named_values(f"--{name.removesuffix('s').replace('_', '-')}", asked[name])
    if source.is_file():
        from subbyte.export import quantize_onnx

        if overwrite:
            raise click.UsageError("--overwrite is for checkpoints; an ONNX file is replaced without it.")
        click.echo(str(quantize_onnx(source, output, progress=not quiet, **asked)))
        return
    click.echo(str(subbyte.quantize(source, out=output, overwrite=overwrite, progress=not quiet, **asked)))
