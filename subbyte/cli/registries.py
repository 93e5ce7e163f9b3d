"""`subbyte targets | schemes | models | data | losses | formats`: what there is, one line each."""

from __future__ import annotations

from collections.abc import Iterable

import click


def _print(rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")


@click.command()
def targets() -> None:
    """List the machines that `compile` knows."""
    from subbyte.tvm_kernels.machines import all_targets

    _print((target.name, target.summary) for target in all_targets())


@click.command()
def schemes() -> None:
    """List the quantization schemes that `train` knows."""
    from subbyte.models.quant import all_schemes

    _print((scheme.name, scheme.summary) for scheme in all_schemes())


@click.command()
def models() -> None:
    """List the models of the zoo."""
    from subbyte.models.zoo import get_model, list_models

    _print((name, get_model(name).summary) for name in list_models())


@click.command()
def data() -> None:
    """List the data sets that `train` knows."""
    from subbyte.models.data import list_data

    _print(list_data().items())


@click.command()
def losses() -> None:
    """List the training objectives."""
    from subbyte.models.losses import get_loss, list_losses

    _print((name, get_loss(name).summary) for name in list_losses())


@click.command()
def formats() -> None:
    """List the low-bit number formats."""
    from subbyte.formats import all_formats

    _print(
        (fmt.name, f"{fmt.code_bits} {'bit ' if fmt.code_bits == 1 else 'bits'}  {fmt.summary}")
        for fmt in all_formats()
    )
