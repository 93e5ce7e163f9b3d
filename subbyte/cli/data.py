"""`subbyte data`: the data sets that `train` knows, and what is in one."""

from __future__ import annotations

from pathlib import Path

import click

from subbyte.cli.listing import print_entries
from subbyte.cli.named_values import named_values


@click.command()
@click.argument("name", required=False)
@click.option("--data-path", type=click.Path(path_type=Path), help="Its files, for a data set that is not installed.")
@click.option("--data-option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the data set.")
def data(name: str | None, data_path: Path | None, options: tuple[str, ...]) -> None:
    """List the data sets: task, input, what to install; or load NAME, and say what is in it.

    \b
    subbyte data digits
    subbyte data table --data-path flowers.csv --data-option target=species
    """
    from subbyte.errors import UsageError
    from subbyte.models.data import describe, get_data, list_data, load_data

    given = named_values("--data-option", options)
    if name is not None:
        print_entries(describe(load_data(name, data_path, **given)))
        return
    if data_path is not None or given:
        raise UsageError("--data-path and --data-option are of one data set: name it.")
    entries = [get_data(known) for known in list_data()]
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        click.echo(f"{entry.name:<{width}}  {entry.summary}")
        shape = f"[{', '.join(map(str, entry.shape))}]" if entry.shape else ""
        for what, text in (
            ("task", entry.task), ("input", shape), ("needs", entry.needs), ("options", ", ".join(entry.options)),
        ):  # fmt: skip
            if text:
                click.echo(f"{'':<{width}}  {what:<7}  {text}")
