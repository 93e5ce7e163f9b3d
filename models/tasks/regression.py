"""Regression: real values for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.base import Batch, Task, refuse_other_values
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score, Sums

if TYPE_CHECKING:
    from subbyte.models.data import Data


class Determination(Sums):
    """R2 = 1 - sum (y - f)^2 / sum (y - mean y)^2, with the mean of each value over the samples that were counted."""

    def count(self, output: Array, target: Array) -> Array:
        y = target.reshape(len(target), -1).astype(np.float64)
        error = output.reshape(y.shape) - y
        return np.stack([(error**2).sum(0), y.sum(0), (y**2).sum(0), np.full(y.shape[1], len(y), np.float64)])

    def measure(self, total: Array) -> float:
        error, first, second, count = total
        spread = (second - first**2 / count).sum()
        return float(1 - error.sum() / spread) if spread > 0 else 0.0


@task("regression")
@dataclass(frozen=True)
class Regression(Task):
    """real values for each sample: prediction and value [N] or [N, V]

    The metric is the coefficient of determination R2. Chance is 0: the mean of the test values.
    """

    gives = frozenset({"prediction", "value", "ids"})
    loss = "huber"
    metric = Metric("r2")

    def check(self, data: Data) -> None:
        refuse_other_values(data, self, "real values for each sample")

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(prediction=result.reshape(batch.target.shape))

    def targets(self, batch: Batch) -> Targets:
        return Targets(value=batch.target.float(), ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return Determination()

    def chance(self, inputs: Array, targets: Array) -> float:
        return 0.0
