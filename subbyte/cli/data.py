"""`subbyte data`: the data sets that `train` knows, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def data() -> None:
    """List the data sets that `train` knows."""
    from subbyte.models.data import list_data

    print_entries(list_data().items())
