"""Classification: one label for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.base import Batch, Task, refuse_other_labels
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Accuracy, Array, Metric, Score, most_frequent

if TYPE_CHECKING:
    from subbyte.models.data import Data


@task("classification")
@dataclass(frozen=True)
class Classification(Task):
    """one label for each sample: logits [N, C], label [N]

    Chance is the share of the most frequent label.
    """

    gives = frozenset({"logits", "label", "ids"})
    loss = "cross-entropy"
    metric = Metric("accuracy", percent=True)

    def check(self, data: Data) -> None:
        refuse_other_labels(data, self, (), "one label, an integer, for each sample")

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(result)

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return Accuracy()

    def class_axis(self, shape: tuple[int, ...]) -> int:
        return 0

    def chance(self, inputs: Array, targets: Array) -> float:
        return most_frequent(targets)
