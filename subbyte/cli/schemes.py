"""`subbyte schemes`: the quantization schemes that `train` knows, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def schemes() -> None:
    """List the quantization schemes that `train` knows."""
    from subbyte.models.quant import all_schemes

    print_entries((scheme.name, scheme.summary) for scheme in all_schemes())
