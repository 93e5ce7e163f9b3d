"""`subbyte formats`: the low-bit number formats, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def formats() -> None:
    """List the low-bit number formats."""
    from subbyte.formats import all_formats

    print_entries(
        (fmt.name, f"{fmt.code_bits} {'bit ' if fmt.code_bits == 1 else 'bits'}  {fmt.summary}")
        for fmt in all_formats()
    )
