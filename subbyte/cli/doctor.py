"""`subbyte doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import click


@click.command()
def doctor() -> None:
    """Show versions, CPU features, toolchains and energy meters; say what is missing and how to get it."""
    from rich.table import Table
    from rich.text import Text

    from subbyte.cli.tables import open_console
    from subbyte.judge.doctor import examine

    console = open_console()
    for section, rows in examine().items():
        table = Table(title=section, title_justify="left", box=None, pad_edge=False)
        for heading in ("", "what", "found", "how to get it"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            mark = Text("ok", style="green") if row.found else Text("--", style="yellow")
            table.add_row(mark, row.what, row.found or "missing", "" if row.found else row.remedy)
        console.print(table)
        console.print()
