"""Contrastive learning: two augmented views of a sample are near, other samples far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.options import Count
from subbyte.models.tasks.base import Batch, Task, refuse_misfit, refuse_other_labels
from subbyte.models.tasks.metric_learning import RecallAtOne, of_random_neighbours
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score

if TYPE_CHECKING:
    from subbyte.models.data import Data


@task("contrastive")
@dataclass(frozen=True)
class Contrastive(Task):
    """two augmented views of a sample near each other: embeddings [N, 2, width]; labels [N] for tests and `supcon`

    The metric is the accuracy of the nearest neighbour on the test set. Chance is that of a random neighbour.
    """

    gives = frozenset({"embeddings", "views", "label", "ids"})
    loss = "clip"
    metric = Metric("neighbour_accuracy", percent=True)
    measured_in_training = False
    tested_by_loss = False  # a test sample has one view
    width: Count = 64

    @property
    def views(self) -> int:
        return 2

    def check(self, data: Data) -> None:
        if data.augment is None:
            refuse_misfit(data, self, "an augmentation, which makes the views", "data without one")
        refuse_other_labels(data, self, (), "one label, an integer, for each sample")

    def outputs_for(self, data: Data) -> int:
        return self.width

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(embeddings=result.reshape(-1, self.views, *result.shape[1:]), views=self.views)

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return RecallAtOne()

    def chance(self, inputs: Array, targets: Array) -> float:
        return of_random_neighbours(targets)
