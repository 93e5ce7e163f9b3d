"""Curves of runs over their epochs, from their log.csv, in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subbyte.errors import CheckpointError, MissingDependencyError, UsageError, one_line
from subbyte.files.output import write_file
from subbyte.models.checkpoint_files import LOG
from subbyte.models.train.folder import read_log
from subbyte.models.train.font_list import import_matplotlib

Logs = Mapping[str, Sequence[Mapping[str, float]]]  # rows of each run
Line = tuple[str, str, list[float], list[float]]  # run, column, epochs, values

STYLES = {"test": "-", "validation": "--", "train": ":"}  # of lines, by the part of the data

# To add a panel: its title, and the columns of log.csv that it shows, each with the style of its line. The metric of a
# task has one in front of these.
PANELS: dict[str, Mapping[str, str]] = {
    "loss": {f"{part}_loss": style for part, style in STYLES.items()},
    "learned steps, over their first values": {"step_ratio": "-"},
    "share of flipped weights": {"flipped": "-"},
    "share of oscillating weights": {"oscillating": "-"},
    "learning rate": {"learning_rate": "-"},
}


def draw_curves(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw the logs of run folders to `out`, a .png or a .html with one SVG; panels that no run has are left out.

    Raises UsageError for another suffix or no run, CheckpointError for a folder without a log, MissingDependencyError
    without matplotlib.
    """
    path = Path(out)
    if path.suffix not in (".png", ".html"):
        raise UsageError(f"{path}: curves are a .png or a .html, got the suffix '{path.suffix}'.")
    if not runs:
        raise UsageError("no run: give the folders that `subbyte train --out` made.")
    logs = {str(run): _log(Path(run)) for run in runs}
    import_matplotlib()
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "curves") from error
    figure = _figure(Figure, logs)
    content = io.BytesIO()
    figure.savefig(content, format="png" if path.suffix == ".png" else "svg", dpi=120)
    picture = content.getvalue()
    write_file(path, picture if path.suffix == ".png" else _page(picture))
    return path


def shown(logs: Logs) -> dict[str, list[Line]]:
    """The lines of each panel, of those that have one."""
    panels = {
        title: [
            (run, column, [row["epoch"] for row in rows], [row[column] for row in rows])
            for run, rows in logs.items()
            for column in columns
            if rows and all(column in row for row in rows)
        ]
        for title, columns in _panels(logs).items()
    }
    return {title: lines for title, lines in panels.items() if lines}


def _panels(logs: Logs) -> dict[str, Mapping[str, str]]:
    """All panels: first those of the metrics of tasks, by the columns of the logs."""
    columns = [column for rows in logs.values() for row in rows[:1] for column in row]
    metrics = [c.removeprefix(f"{part}_") for c in columns for part in STYLES if c.startswith(f"{part}_")]
    scores = {
        name.replace("_", " "): {f"{part}_{name}": style for part, style in STYLES.items()}
        for name in metrics
        if name != "loss"
    }
    return {**scores, **PANELS}


def _log(folder: Path) -> tuple[dict[str, float], ...]:
    try:
        rows = read_log(folder / LOG)
        if not rows or "epoch" not in rows[0]:
            raise ValueError("no row of an epoch")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / LOG}: no log of a run ({one_line(error)}); give the folder that `subbyte train --out` made."
        ) from error
    return rows


def _figure(make: Any, logs: Logs) -> Any:
    panels, styles = shown(logs), _panels(logs)
    rows = -(-len(panels) // 2)
    figure = make(figsize=(11, 3.2 * rows), layout="constrained")
    colors = {run: f"C{index % 10}" for index, run in enumerate(logs)}
    for index, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, 2, index)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for run, column, epochs, values in lines:
            style = styles[title][column]
            label = run + {":": " (training)", "--": " (held out)"}.get(style, "")
            axes.plot(epochs, values, style, color=colors[run], label=label, marker="." if len(epochs) < 30 else "")
        if index == 1:
            axes.legend(fontsize="small")
    return figure


def _page(picture: bytes) -> bytes:
    head = b'<!doctype html>\n<html><head><meta charset="utf-8"><title>Training curves</title></head><body>'
    return head + picture[picture.index(b"<svg") :] + b"</body></html>\n"
