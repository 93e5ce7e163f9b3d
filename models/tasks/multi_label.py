"""Multi-label classification: several yes or no for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.base import Batch, Task, refuse_misfit, refuse_other_labels, samples
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score, Sums

if TYPE_CHECKING:
    from subbyte.models.data import Data


class MicroF1(Sums):
    """2 TP / (2 TP + FP + FN) over all labels of all samples; a score above 0 is a yes, a negative label left out."""

    def count(self, output: Array, target: Array) -> Array:
        yes, counts = output > 0, target >= 0
        right = (yes & (target == 1) & counts).sum()
        return np.array([2 * right, (yes & counts).sum() + (target == 1).sum()], np.float64)

    def measure(self, total: Array) -> float:
        return float(total[0] / total[1]) if total[1] else 0.0


@task("multi-label")
@dataclass(frozen=True)
class MultiLabel(Task):
    """several yes or no for each sample: scores [N, L], label [N, L] of 0 and 1

    The metric is micro-averaged F1. Chance is the best of all answers that are the same for every sample.
    """

    gives = frozenset({"scores", "label", "ids"})
    loss = "binary-cross-entropy"
    metric = Metric("f1", percent=True)

    def check(self, data: Data) -> None:
        says = f"{data.outputs} labels of 0 and 1, integers, for each sample"
        for _, target in samples(data):
            if target.shape == (data.outputs,) and target.dtype.kind in "iub" and target.max(initial=0) > 1:
                refuse_misfit(data, self, says, f"label {target.max()}")
        refuse_other_labels(data, self, (data.outputs,), says)

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(result)

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return MicroF1()

    def chance(self, inputs: Array, targets: Array) -> float:
        """Of answers that say yes to the k most frequent labels, the best is the best of all (each k is tried)."""
        right = np.cumsum(np.sort((targets == 1).sum(0))[::-1])
        yes = np.arange(1, targets.shape[1] + 1) * len(targets)
        return float((2 * right / (yes + (targets == 1).sum())).max())

    def predictions(self, output: Array, shape: tuple[int, ...]) -> Array:
        return output > 0
