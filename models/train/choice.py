"""Which epoch's model is the result of a run, and when training stops: by the rows of the log alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subbyte.models.tasks import Metric

History = Sequence[Mapping[str, float]]


def tested(row: Mapping[str, float], metric: Metric) -> float:
    """The score on the test set in a row of the log."""
    return row[f"test_{metric.name}"]


def best_epoch(history: History, metric: Metric) -> int:
    """The index of the row with the best test score; of equals the lowest test loss, then the first."""
    return max(
        range(len(history)),
        key=lambda i: (metric.better(tested(history[i], metric)), -history[i].get("test_loss", 0.0), -i),
    )


def is_over(history: History, metric: Metric, patience: int | None) -> bool:
    """Whether the last `patience` epochs were none better than the best before them."""
    return patience is not None and bool(history) and len(history) - 1 - best_epoch(history, metric) >= patience
