"""What calibration and steps report while they run: how far they are, with the time left, and notes.

Within `reporting` the notes are collected and, on a terminal, bars are shown; outside of it both go nowhere, so that a
calibrator or a step works alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Report:
    """The notes so far, and the bars if there are any."""

    def __init__(self, bars: Progress | None) -> None:
        self.notes: list[str] = []
        self.bars = bars


_current: ContextVar[Report | None] = ContextVar("subbyte_post_report", default=None)


@contextmanager
def reporting(progress: bool, console: Console | None = None) -> Iterator[Report]:
    """Collect notes; show bars where `progress` asks for it and the console is a terminal."""
    console = console or Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, transient=True) if progress and console.is_terminal else None
    report = Report(bars)
    token = _current.set(report)
    try:
        if bars is None:
            yield report
        else:
            with bars:
                yield report
    finally:
        _current.reset(token)


def note(text: str) -> None:
    """Say something that the result reports, such as a layer that a step leaves as it is."""
    report = _current.get()
    if report is not None:
        report.notes.append(text)


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, one after the other, of `total`; the bar `what` moves with each."""
    report = _current.get()
    bars = None if report is None else report.bars
    if bars is None:
        yield from items
        return
    task = bars.add_task(what, total=total)
    try:
        for item in items:
            yield item
            bars.advance(task)
    finally:
        bars.remove_task(task)
