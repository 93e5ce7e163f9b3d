"""What the commands that list a register print: a line for each entry."""

from __future__ import annotations

from collections.abc import Iterable

import click


def print_entries(rows: Iterable[tuple[str, str]]) -> None:
    """Names, aligned, each with its summary."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")
