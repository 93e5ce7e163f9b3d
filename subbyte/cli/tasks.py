"""`subbyte tasks`: what a network can be trained for."""

from __future__ import annotations

import click


@click.command()
def tasks() -> None:
    """List the tasks: what a batch and its targets are, the loss, the metric, the options.

    A data set says which task it is for; --task of `subbyte train` takes another.
    """
    from subbyte.models.tasks import get_task, list_tasks

    entries = [get_task(name) for name in list_tasks()]
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        click.echo(f"{entry.name:<{width}}  {entry.summary}")
        better = "higher" if entry.metric.higher_is_better else "lower"
        options = ", ".join(f"{name}={value}" for name, value in entry.options().items())
        for what, text in (
            ("loss", entry.loss),
            ("metric", f"{entry.metric.title}, {better} is better"),
            ("options", options),
        ):
            click.echo(f"{'':<{width}}  {what:<7}  {text or 'has none'}")
