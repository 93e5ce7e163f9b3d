"""`subbyte losses`: the training objectives, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def losses() -> None:
    """List the training objectives."""
    from subbyte.models.losses import get_loss, list_losses

    print_entries((name, get_loss(name).summary) for name in list_losses())
