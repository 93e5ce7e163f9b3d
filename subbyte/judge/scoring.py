"""What a model is scored on: a test set that it takes, by the metric of its task, on its first output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from subbyte.errors import UsageError

if TYPE_CHECKING:
    from subbyte.models.data import Data
    from subbyte.models.tasks import Metric, Task

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ScoredData:
    """Samples to score a model on, and the task that says how."""

    task: Task
    data: Data
    inputs: Array  # [N, ...]
    targets: Array  # [N, ...]

    @property
    def metric(self) -> Metric:
        """The metric of the task."""
        return self.task.metric

    def chance(self) -> float:
        """The score of a guess that does not look at the sample, as the task says."""
        return self.task.chance(self.inputs, self.targets)

    def score(self, outputs: Iterable[Array]) -> float:
        """The score of outputs of batches, in the order of the samples; samples after them are left out."""
        score, start = self.task.score(self.data.shape), 0
        for output in outputs:
            score.add(output, self.targets[start : start + len(output)])
            start += len(output)
        return score.result()

    def refuse_other_model(self, shape: Sequence[int], dtype: str) -> None:
        """Raise UsageError unless the model's input, of `shape` without the batch, is that of the data."""
        if self.inputs.shape[1:] != tuple(shape) or self.inputs.dtype != dtype:
            raise UsageError(
                f"data set '{self.data.name}' has inputs of {self.inputs.dtype} {list(self.inputs.shape[1:])}, the "
                f"model expects {dtype} {list(shape)}"
            )

    def refuse_unscorable(self, name: str, shape: Sequence[int], where: str = "the model") -> None:
        """Raise UsageError where the first output, `name` of `shape` (0: any size), is not what the task scores."""
        if shape and self.task.fits(tuple(shape[1:]), self.data):
            return
        wanted = ", ".join(map(str, ("N", *self.task.output_shape(self.data))))
        raise UsageError(
            f"{self.metric.title} is scored on the first output of {where}, and '{name}' of shape {list(shape)} is not "
            f"the [{wanted}] of task '{self.task.name}' on data set '{self.data.name}': return that output first, or "
            "leave the data out"
        )


def read_test_set(
    name: str,
    path: str | Path | None,
    limit: int | None,
    task: Task | None,
    options: Mapping[str, Any],
) -> ScoredData:
    """The first `limit` test samples of a data set, for `task`, or that of the data.

    Raises UnknownNameError for the name, UsageError for options, DataError for data that does not fit the task.
    """
    from subbyte.models.data import load_recorded
    from subbyte.models.tasks import get_task

    data = load_recorded(name, path, options)
    task = get_task(data.task, **data.task_options) if task is None else task
    task.check(data)
    return ScoredData(task, data, *data.test_arrays(limit))


def recorded(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The options that the metadata of a file has as JSON under a name; none where it has none."""
    try:
        found = json.loads(str(metadata.get(key, "{}")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"the file's metadata '{key}' is not a JSON object: it was changed after the export")
    return found


def scored_on(names: Sequence[str]) -> str:
    """Which output predictions are read from, where there are several; else nothing."""
    return f"'{names[0]}', the first of {len(names)} outputs" if len(names) > 1 else ""
