"""`subbyte models`: the models of the zoo, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def models() -> None:
    """List the models of the zoo."""
    from subbyte.models.zoo import get_model, list_models

    print_entries((name, get_model(name).summary) for name in list_models())
