"""`subbyte recipe`: which rule decides each layer of a model, and what that costs."""

from __future__ import annotations

import json as jsonlib
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.option("--scheme", help="A scheme for all layers, in place of the checkpoint's recipe; see `subbyte schemes`.")
@click.option("--recipe", "file", type=click.Path(path_type=Path), help="A YAML or JSON file of rules, in its place.")
@click.option("--data", help="Data set that a model of the zoo is made for; see `subbyte data`.")
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--data-option", "data_options", multiple=True, metavar="NAME=VALUE", help="An option of the data set.")
@click.option(
    "--model-option", "model_options", multiple=True, metavar="NAME=VALUE", help="An option of a model of the zoo."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the recipe to a YAML file, to edit.")
def recipe(
    model: str,
    scheme: str | None,
    file: Path | None,
    data: str | None,
    data_path: Path | None,
    data_options: tuple[str, ...],
    model_options: tuple[str, ...],
    as_json: bool,
    output: Path | None,
) -> None:
    """Show what a recipe makes of each layer of MODEL: bits, multiply-accumulates of one input, bytes of weights.

    MODEL is a name of `subbyte models`, or the folder of a checkpoint, whose own recipe is the default. Of a model of
    the zoo it is the scheme ternary, as in `subbyte train`. Bytes of weights are packed codes and scales.

    \b
    subbyte recipe resnet8 --data digits --scheme int4 -o r.yaml
    subbyte recipe runs/t --recipe r.yaml
    """
    from subbyte.cli.named_values import named_values
    from subbyte.cli.output import printing_beside
    from subbyte.errors import UsageError
    from subbyte.files.output import write_file
    from subbyte.files.plain import not_read
    from subbyte.models.data import load_data
    from subbyte.models.named_model import named_model
    from subbyte.models.quant import as_recipe, read_recipe, recipe_text
    from subbyte.models.quant.costs import costs
    from subbyte.models.train.run import SCHEME

    if scheme is not None and file is not None:
        raise UsageError("--scheme and --recipe each say how layers are quantized; leave one out")
    given = None if scheme is None else as_recipe(scheme)
    if file is not None:
        with nullcontext() if output is None else not_read(output, "--output"):
            given = read_recipe(file)
    loaded = None if data is None else load_data(data, data_path, **named_values("--data-option", data_options))
    form = (given or as_recipe(SCHEME)).main.name
    found = named_model(model, loaded, form, named_values("--model-option", model_options))
    chosen = given or found.recipe or as_recipe(SCHEME)
    report = costs(found.module, chosen, found.example)
    if output is not None:
        write_file(output, recipe_text(chosen).encode())
    with printing_beside(output):
        if as_json:
            click.echo(jsonlib.dumps({"model": found.title, "recipe": chosen.name, **asdict(report)}, indent=1))
            return
        from subbyte.cli.tables import print_costs

        print_costs(f"{found.title}, {chosen.name}", report)
