"""Metric learning: embeddings in which samples of one class are near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.options import Count
from subbyte.models.tasks.base import Batch, Task, refuse_other_labels
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Rows, Score

if TYPE_CHECKING:
    from subbyte.models.data import Data

AT_ONCE = 1024  # rows that are compared with all at once: the table of similarities stays small


class RecallAtOne(Rows):
    """The share of the samples whose nearest other one, by cosine, has their label; embeddings [N, D], labels [N].

    A sample with a negative label, or the only one of its class, does not count.
    """

    def measure(self, outputs: Array, targets: Array) -> float:
        z, label = outputs[targets >= 0].astype(np.float64), targets[targets >= 0]
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        several = np.bincount(label)[label] > 1 if label.size else label > 0
        right = 0
        for start in range(0, len(z), AT_ONCE):
            similarity = z[start : start + AT_ONCE] @ z.T
            here = np.arange(len(similarity))
            similarity[here, start + here] = -np.inf
            found = label[similarity.argmax(1)] == label[start : start + AT_ONCE]
            right += int((found & several[start : start + AT_ONCE]).sum())
        return right / max(1, int(several.sum()))


def of_random_neighbours(targets: Array) -> float:
    """Recall at one where the nearest other sample is any other."""
    sizes = np.bincount(targets[targets >= 0])
    sizes = sizes[sizes > 1].astype(np.float64)
    total = (targets >= 0).sum()
    return float((sizes * (sizes - 1)).sum() / (sizes.sum() * (total - 1))) if sizes.size else 0.0


@task("metric-learning")
@dataclass(frozen=True)
class MetricLearning(Task):
    """embeddings [N, width] in which samples of one class are near, label [N]

    The metric is recall at one on the test set. Chance is that of a random neighbour.
    """

    gives = frozenset({"embeddings", "label", "ids"})
    loss = "triplet"
    metric = Metric("recall_at_1", percent=True)
    measured_in_training = False
    tested_by_loss = False  # it compares the samples of a batch
    width: Count = 64

    def check(self, data: Data) -> None:
        refuse_other_labels(data, self, (), "one label, an integer, for each sample")

    def outputs_for(self, data: Data) -> int:
        return self.width

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(embeddings=result)

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return RecallAtOne()

    def chance(self, inputs: Array, targets: Array) -> float:
        return of_random_neighbours(targets)
