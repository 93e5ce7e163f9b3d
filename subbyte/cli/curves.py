"""`subbyte curves`: the curves of training runs in one picture."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="curves.png", show_default=True, type=click.Path(path_type=Path), help="A .png or .html."
)
def curves(runs: tuple[Path, ...], output: Path) -> None:
    """Draw accuracy, loss, learned steps, flipped and oscillating weights of training runs over their epochs.

    \b
    subbyte curves runs/float runs/ternary -o curves.html
    """
    from subbyte.models.train.curves import draw_curves

    click.echo(f"{draw_curves(runs, output)}: curves of {len(runs)} run{'s' if len(runs) > 1 else ''}")
