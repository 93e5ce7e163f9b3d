"""`subbyte targets`: the machines that `compile` knows, one line each."""

from __future__ import annotations

import click

from subbyte.cli.listing import print_entries


@click.command()
def targets() -> None:
    """List the machines that `compile` knows."""
    from subbyte.tvm_kernels.machines import all_targets

    print_entries((target.name, target.summary) for target in all_targets())
