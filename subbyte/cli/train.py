"""`subbyte train`: train a model of the zoo with a quantization scheme. Its options are the fields of `Run`."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from subbyte.cli.named_values import named_values

PATHS: dict[str, click.ParamType[Any]] = {
    "folder": click.Path(file_okay=False),
    "checkpoint": click.Path(exists=True, file_okay=False),
    "any": click.Path(),
}
NAMES = {"num_nodes": "nodes"}  # options that have a name of their own


class TrainCommand(click.Command):
    """A command with an option for each field of `Run`, which are read when they are needed: that imports torch."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from subbyte.models.train.run import Run

        hints = get_type_hints(Run)
        made = [_option(one, hints[one.name]) for one in fields(Run) if one.name != "model"]
        return [*self.params[:1], *made, *self.params[1:], *filter(None, [self.get_help_option(ctx)])]


@click.command(cls=TrainCommand)
@click.argument("model", required=False)
@click.option("--config", type=click.Path(path_type=Path), help="A run.yaml whose fields the other options replace.")
@click.option("--print-config", is_flag=True, help="Print the configuration that these options make, and stop.")
@click.option("--resume", is_flag=True, help="Go on with the run found in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the run that --out holds; refused without this or --resume.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    config: Path | None,
    print_config: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Train MODEL (see `subbyte models`) and save a checkpoint: safetensors and JSON, never a pickle.

    \b
    subbyte train resnet8 --data digits --scheme ternary --epochs 15 --out runs/t
    subbyte train --config runs/t/run.yaml --seed 1 --out runs/t1
    """
    import subbyte
    from subbyte.models.train.run import changed, read_run, run_of

    asked = {name: value for name, value in given.items() if _was_given(ctx, name)}
    for name in [name for name in asked if name.endswith("_options")]:
        asked[name] = named_values(f"--{_flag(name)}", asked[name])
    if config is None and "model" not in asked:
        raise click.UsageError("Missing argument 'MODEL'.", ctx)
    base = {} if config is None else read_run(config).as_dict()
    run = run_of(changed(base, asked))
    if print_config:
        click.echo(run.as_text(), nl=False)
        return
    if run.out is None:
        raise click.UsageError("Missing option '--out'.", ctx)
    result = subbyte.train(run, resume=resume, overwrite=overwrite, progress=not quiet)
    click.echo(
        f"{result.folder}: {run.scheme or 'recipe'} {run.model}, test {result.metric.title} "
        f"{result.metric.words(result.score)} after {len(result.history)} epochs"
    )


def _option(one: Field[Any], hint: Any) -> click.Option:
    """The option of a field: its type, default and help are the field's."""
    name, default, says = _flag(one.name), one.default, one.metadata["help"]
    if one.name.endswith("_options"):
        return click.Option([f"--{name}", one.name], multiple=True, metavar="NAME=VALUE", help=says)
    if hint is bool:
        return click.Option([f"--{name}/--no-{name}", one.name], default=default, show_default=True, help=says)
    shown = default is not None and default is not MISSING
    return click.Option([f"--{name}", one.name], type=_type(one, hint), default=default, show_default=shown, help=says)


def _type(one: Field[Any], hint: Any) -> click.ParamType[Any]:
    if one.metadata["path"]:
        return PATHS[one.metadata["path"]]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return click.Choice(kinds)
    numbers: dict[Any, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT}
    return numbers.get(kinds[0], click.STRING) if len(kinds) == 1 else click.STRING


def _flag(name: str) -> str:
    return NAMES.get(name, name.removesuffix("s") if name.endswith("_options") else name).replace("_", "-")


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
