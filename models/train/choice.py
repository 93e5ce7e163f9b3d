"""Which epoch's model is the result of a run, and when training stops: by the rows of the log alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The index of the row with the highest test accuracy; of equals the lowest test loss, then the first."""
    return max(range(len(history)), key=lambda i: (history[i]["test_accuracy"], -history[i]["test_loss"], -i))


def is_over(history: Sequence[Mapping[str, float]], patience: int | None) -> bool:
    """Whether the last `patience` epochs were none better than the best before them."""
    return patience is not None and bool(history) and len(history) - 1 - best_epoch(history) >= patience
