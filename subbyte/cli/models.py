"""`subbyte models`: the models of the zoo, one line each, with what an input of it is."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def models() -> None:
    """List the models of the zoo and what they take: images, series or tokens."""
    from subbyte.models.zoo import get_model, list_models

    entries = [get_model(name) for name in list_models()]
    print_entries((entry.name, f"{entry.takes:<{len('series')}}  {entry.summary}") for entry in entries)
