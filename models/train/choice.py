"""Which epoch's model is the result of a run, and when training stops: by the rows of the log alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subbyte.models.tasks import Metric

History = Sequence[Mapping[str, float]]


HELD_OUT, TEST = "validation", "test"  # the parts that epochs are scored on, as columns of the log begin


def scored_on(row: Mapping[str, float], metric: Metric) -> str:
    """The part of the data that the epochs of a log are scored on: what was held out, else the test set."""
    return HELD_OUT if f"{HELD_OUT}_{metric.name}" in row else TEST


def scored(row: Mapping[str, float], metric: Metric) -> float:
    """The score by which an epoch is judged in a row of the log."""
    return row[f"{scored_on(row, metric)}_{metric.name}"]


def best_epoch(history: History, metric: Metric) -> int:
    """The index of the row with the best score; of equals the lowest loss on the same part, then the first."""

    def rank(index: int) -> tuple[float, float, int]:
        row = history[index]
        return metric.better(scored(row, metric)), -row.get(f"{scored_on(row, metric)}_loss", 0.0), -index

    return max(range(len(history)), key=rank)


def is_over(history: History, metric: Metric, patience: int | None) -> bool:
    """Whether the last `patience` epochs were none better than the best before them."""
    return patience is not None and bool(history) and len(history) - 1 - best_epoch(history, metric) >= patience


def metrics_of(row: Mapping[str, float], metric: Metric) -> dict[str, float]:
    """What a checkpoint says of its epoch: scores of the test set by their names, others with their part in front."""
    part = scored_on(row, metric)
    names = {f"{part}_{name}": name if part == TEST else f"{part}_{name}" for name in (metric.name, "loss")}
    return {**{names[column]: row[column] for column in names if column in row}, "epochs": row["epoch"]}
