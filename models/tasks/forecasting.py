"""Forecasting: the next values of a series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.options import Count
from subbyte.models.tasks.base import Batch, Task, refuse_misfit, samples
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score, Sums, ratio

if TYPE_CHECKING:
    from subbyte.models.data import Data


class SquaredError(Sums):
    """The mean of (y - f)^2 over all values."""

    def count(self, output: Array, target: Array) -> Array:
        error = output.reshape(target.shape).astype(np.float64) - target
        return np.array([(error**2).sum(), error.size], np.float64)

    def measure(self, total: Array) -> float:
        return ratio(total)


@task("forecasting")
@dataclass(frozen=True)
class Forecasting(Task):
    """the next `horizon` values of a series [C, L]: prediction [N, C * horizon], value [N, C, horizon], or [N, horizon]

    The values of one channel, [N, horizon], are those of the first. The metric is the mean squared error. Chance is the
    naive forecast: the last value of each channel, repeated.
    """

    gives = frozenset({"prediction", "value", "ids"})
    loss = "mse"
    metric = Metric("mse", higher_is_better=False)
    horizon: Count = 1

    def check(self, data: Data) -> None:
        shapes = [(self.horizon,), (*data.shape[:1], self.horizon)]
        says = f"inputs [C, L] and targets {' or '.join(str(list(shape)) for shape in shapes)}, float32"
        for one, target in samples(data):
            if one.ndim != 2 or target.dtype.kind != "f" or target.shape not in shapes or target.size != data.outputs:
                refuse_misfit(
                    data, self, f"{says}, {data.outputs} in all", f"{list(one.shape)} and {target.dtype} "
                    f"{list(target.shape)}",
                )  # fmt: skip

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(prediction=result.reshape(batch.target.shape))

    def targets(self, batch: Batch) -> Targets:
        return Targets(value=batch.target.float(), ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return SquaredError()

    def chance(self, inputs: Array, targets: Array) -> float:
        last = inputs[:, :, -1:] if targets.ndim == 3 else inputs[:, 0, -1:]
        score = SquaredError()
        score.add(np.broadcast_to(last, targets.shape), targets)
        return score.result()
