"""`subbyte train`: train a model of the zoo with a quantization scheme."""

from __future__ import annotations

from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
CHECKPOINT = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option("--data", default="digits", show_default=True, help="Data set; see `subbyte data`.")
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--scheme", default="ternary", show_default=True, help="How it is quantized; see `subbyte schemes`.")
@click.option(
    "--scheme-option",
    "scheme_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the scheme, e.g. group_size=32 of int4, activations=token of ternary, keep=none.",
)
@click.option(
    "--model-option",
    "model_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the model, e.g. width=32 of resnet8, hidden=64,32 of mlp (one width: hidden=64,).",
)
@click.option("--epochs", default=15, show_default=True, type=click.IntRange(1), help="Passes over the training set.")
@click.option("--out", required=True, type=FOLDER, help="Folder for the checkpoint and the log.")
@click.option("--init", type=CHECKPOINT, help="Checkpoint folder to start from, e.g. the float model.")
@click.option("--loss", default="cross-entropy", show_default=True, help="Objective; see `subbyte losses`.")
@click.option(
    "--loss-option",
    "loss_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the loss, e.g. temperature=4 or alpha=0.9 of kd.",
)
@click.option("--teacher", type=CHECKPOINT, help="Checkpoint folder of the teacher, for distillation.")
@click.option("--batch-size", default=None, type=click.IntRange(1), help="Images of all processes in one step.")
@click.option("--optimizer", default="adamw", show_default=True, help="adamw or sgd.")
@click.option(
    "--learning-rate", default=None, type=click.FloatRange(0, min_open=True), help="The highest of the schedule."
)
@click.option("--seed", default=0, show_default=True, help="Of initial weights, order of images and augmentation.")
@click.option("--devices", default="auto", show_default=True, help="Lightning's devices: auto, or a number.")
@click.option("--strategy", default="auto", show_default=True, help="Lightning's strategy: auto, ddp, fsdp, ...")
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1), help="Hosts that train together.")
@click.option("--resume", is_flag=True, help="Continue after the last complete epoch of --out.")
@click.option("--overwrite", is_flag=True, help="Train from the start and replace the run in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(
    model: str,
    data: str,
    data_path: Path | None,
    scheme: str,
    scheme_options: tuple[str, ...],
    model_options: tuple[str, ...],
    epochs: int,
    out: Path,
    init: Path | None,
    loss: str,
    loss_options: tuple[str, ...],
    teacher: Path | None,
    batch_size: int | None,
    optimizer: str,
    learning_rate: float | None,
    seed: int,
    devices: str,
    strategy: str,
    nodes: int,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Train MODEL (see `subbyte models`) and save a checkpoint: safetensors and JSON, never a pickle.

    \b
    subbyte train resnet8 --data digits --scheme ternary --epochs 15 --out runs/t
    """
    import subbyte

    result = subbyte.train(
        model,
        data=data,
        data_path=data_path,
        scheme=scheme,
        scheme_options=_options("--scheme-option", scheme_options),
        model_options=_options("--model-option", model_options),
        epochs=epochs,
        out=out,
        init=init,
        loss=loss,
        loss_options=_options("--loss-option", loss_options),
        teacher=teacher,
        seed=seed,
        devices=devices,
        strategy=strategy,
        num_nodes=nodes,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
    )
    click.echo(f"{result.folder}: {scheme} {model}, test accuracy {100 * result.accuracy:.2f}% after {epochs} epochs")


def _options(flag: str, given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs as keyword arguments, each value as `_value` reads it."""
    from subbyte.errors import UsageError

    options: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals or not value:
            raise UsageError(f"{flag} takes NAME=VALUE, got '{item}'")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """None, a truth value, a whole number, another finite number, a list where there is a comma, or the text itself."""
    if "," in text:
        return [_value(part) for part in text.split(",") if part]
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            return number if isfinite(number) else text
    return text


_WORDS = {"none": None, "true": True, "false": False}
