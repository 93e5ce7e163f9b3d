"""`subbyte losses`: the losses that an objective is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

import click

if TYPE_CHECKING:
    from subbyte.models.losses.entry import LossEntry


@click.command()
def losses() -> None:
    """List the losses: what each needs, its options, its source.

    \b
    An objective is a sum of losses: --loss "cross-entropy + 0.5*kd(temperature=4)"
    """
    from subbyte.models.losses import get_loss, list_losses

    entries = [get_loss(name) for name in list_losses()]
    titles = [f"{entry.name} ({entry.alias})" if entry.alias else entry.name for entry in entries]
    width = max(map(len, titles))
    for title, entry in zip(titles, entries, strict=True):
        use = f"; for {', '.join(entry.good_for)}" if entry.good_for else ""
        click.echo(f"{title:<{width}}  {entry.summary}{use}")
        needs = ", ".join(" or ".join(names) for names in entry.alternatives())
        for what, text in (("needs", needs), ("options", ", ".join(_options(entry))), ("source", entry.source)):
            click.echo(f"{'':<{width}}  {what:<7}  {text or 'has none'}")


def _options(entry: LossEntry) -> list[str]:
    """Each option with its default and range, then those that name modules."""
    from subbyte.models.options import range_of

    hints = get_type_hints(entry.function, include_extras=True)
    found = []
    for name, default in entry.options.items():
        limits = range_of(hints[name])
        notes = [*([f"in {limits}"] if limits else []), *(["learned"] if name in entry.learned else [])]
        found.append(f"{name}={default}" + (f" ({', '.join(notes)})" if notes else ""))
    return found + [f"{option}=MODULE" for option in sorted(set(entry.taps.values()))]
