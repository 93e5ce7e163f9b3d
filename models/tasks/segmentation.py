"""Segmentation: a label for each pixel of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.base import Batch, Task, refuse_misfit, refuse_other_labels
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score, Sums

if TYPE_CHECKING:
    from subbyte.models.data import Data


class MeanIou(Sums):
    """Intersection over union of each class over all pixels, averaged over the classes that are labelled or predicted.

    Logits [N, C, H, W], labels [N, H, W]; pixels of a negative label do not count.
    """

    def count(self, output: Array, target: Array) -> Array:
        counts, classes = target >= 0, output.shape[1]
        pairs = target[counts] * classes + output.argmax(1)[counts]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.float64)

    def measure(self, total: Array) -> float:
        union = total.sum(0) + total.sum(1) - total.diagonal()
        return float((total.diagonal()[union > 0] / union[union > 0]).mean()) if (union > 0).any() else 0.0


@task("segmentation")
@dataclass(frozen=True)
class Segmentation(Task):
    """a label for each pixel: logits [N, C, H, W], label [N, H, W]

    The metric is mean intersection over union. Chance is the best class everywhere: its share of the pixels, over the
    number of classes.
    """

    gives = frozenset({"logits", "label", "ids"})
    loss = "cross-entropy"
    metric = Metric("mean_iou", percent=True)

    def check(self, data: Data) -> None:
        if len(data.shape) != 3:
            refuse_misfit(data, self, "images [C, H, W]", f"inputs {list(data.shape)}")
        says = f"labels {list(data.shape[1:])}, integers: one for each pixel"
        refuse_other_labels(data, self, data.shape[1:], says)

    def class_axis(self, shape: tuple[int, ...]) -> int:
        return 0

    def output_shape(self, data: Data) -> tuple[int, ...]:
        return (data.outputs, *data.shape[1:])

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(result.movedim(1, -1))

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return MeanIou()

    def chance(self, inputs: Array, targets: Array) -> float:
        pixels = np.bincount(targets[targets >= 0])
        return float(pixels.max() / pixels.sum() / (pixels > 0).sum()) if pixels.size else 0.0
