"""`subbyte sensitivity`: each layer alone at each scheme, measured; and a recipe for an average of bits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from subbyte.models.data import Data
    from subbyte.models.named_model import NamedModel
    from subbyte.models.quant.proposal import Proposal

SCHEMES = ("ternary", "int4", "int8")


@click.command()
@click.argument("model")
@click.option("--data", help="Data set, of whose training part samples are taken.  [default: the one trained on]")
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--data-option", "data_options", multiple=True, metavar="NAME=VALUE", help="An option of the data set.")
@click.option("--model-option", "model_options", multiple=True, metavar="NAME=VALUE", help="An option of the model.")
@click.option("--scheme", "schemes", multiple=True, help=f"Schemes to measure.  [default: {', '.join(SCHEMES)}]")
@click.option("--samples", type=click.IntRange(1), help="How many samples.  [default: 512, or all if there are fewer]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of which samples.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table as JSON, for a recipe's rules.")
@click.option("--propose", metavar="BITS|SHARE%", help="Propose a recipe of at most so many bits per weight.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Write the proposed recipe to this file.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def sensitivity(
    model: str,
    data: str | None,
    data_path: Path | None,
    data_options: tuple[str, ...],
    model_options: tuple[str, ...],
    schemes: tuple[str, ...],
    samples: int | None,
    seed: int,
    output: Path | None,
    propose: str | None,
    recipe: Path | None,
    quiet: bool,
) -> None:
    """Measure how much the output of MODEL changes when one layer alone is quantized, for each layer and scheme.

    MODEL is the folder of a float checkpoint, or a name of `subbyte models`, whose weights are then random. Nothing is
    trained. --propose 4 takes 4 bits, --propose 30% a share of the way from the scheme of the fewest bits to that of
    the most.

    \b
    subbyte sensitivity runs/float -o table.json
    subbyte sensitivity runs/float --scheme ternary --scheme int8 --propose 4 --recipe r.yaml
    """
    from subbyte.cli.named_values import named_values
    from subbyte.cli.output import printing_beside
    from subbyte.cli.tables import open_console, print_sensitivities
    from subbyte.errors import UsageError
    from subbyte.files.output import write_file
    from subbyte.models.layer_sensitivity import measure_sensitivity
    from subbyte.models.quant.proposal import propose as propose_recipe

    if recipe is not None and propose is None:
        raise UsageError("--recipe is for the proposed recipe: add --propose, e.g. --propose 4")
    target = {} if propose is None else _target(propose)
    named, chosen = _named(
        model,
        data,
        data_path,
        named_values("--data-option", data_options),
        named_values("--model-option", model_options),
    )
    found = measure_sensitivity(named, chosen, schemes or SCHEMES, samples=samples, seed=seed, progress=not quiet)
    with printing_beside(output), printing_beside(recipe):
        print_sensitivities(f"{named.title}, {found.samples} samples of {chosen.name}", found, open_console())
    if output is not None:
        about = {"model": named.title, "data": chosen.name, "seed": seed}
        write_file(output, (json.dumps({**found.as_data(), **about}, indent=1) + "\n").encode())
    if propose is not None:
        made = propose_recipe(found, **target)
        said = f"proposed: {made.bits:.2f} bits per weight on average, noise {made.noise:.3g} in sum"
        click.echo(said, err=recipe is None)  # standard output then ends with the recipe
        text = _text(made, output, recipe)
        if recipe is None:
            click.echo(text, nl=False)
        else:
            write_file(recipe, text.encode())


def _named(
    model: str, data: str | None, path: Path | None, data_options: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[NamedModel, Data]:
    """The model and the data that it is measured on."""
    from subbyte.errors import UsageError
    from subbyte.models.data import load_data
    from subbyte.models.named_model import named_model, trained_model
    from subbyte.models.zoo import list_models

    if model in list_models():
        if data is None:
            raise UsageError("a model of the zoo is made for data: add --data; see `subbyte data`")
        loaded = load_data(data, path, **data_options)
        return named_model(model, loaded, options=options), loaded
    if options:
        raise UsageError(f"the checkpoint {model} says what its model is; leave --model-option out")
    named = trained_model(model)
    assert named.config is not None
    if data is None and named.config.data == "custom":
        raise UsageError(f"{model} was trained on data of a program; name a data set with --data")
    return named, load_data(data or named.config.data, path, **data_options)


def _target(text: str) -> dict[str, float]:
    """4 is bits, 30% a share."""
    from subbyte.errors import UsageError

    try:
        return {"share": float(text[:-1]) / 100} if text.endswith("%") else {"bits": float(text)}
    except ValueError as error:
        raise UsageError(f"--propose takes a number of bits or a share, such as 4 or 30%, got '{text}'") from error


def _text(made: Proposal, table: Path | None, written: Path | None) -> str:
    """The recipe in YAML; its rules name the file of the table, where it was written."""
    from subbyte.files.plain_data import plain_data_line
    from subbyte.models.quant import recipe_data

    rules = recipe_data(made.recipe)
    if table is not None:
        named = {"sensitivity": os.path.relpath(table, Path() if written is None else written.parent)}
        rules = [{**named, "of": made.ordered_by, **_but(rule)} if "sensitivity" in rule else rule for rule in rules]
    return "".join(f"- {plain_data_line(rule)}\n" for rule in rules)


def _but(rule: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in rule.items() if key != "sensitivity"}
