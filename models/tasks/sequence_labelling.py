"""Sequence labelling: a label for each position of a series or of a sequence of tokens."""

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


@task("sequence-labelling")
@dataclass(frozen=True)
class SequenceLabelling(Task):
    """a label for each position: logits [N, K, L] of a series or [N, T, K] of tokens, label [N, L] or [N, T]

    A position of a negative label (-100) does not count. Chance is the share of the most frequent label.
    """

    gives = frozenset({"logits", "label", "ids"})
    loss = "cross-entropy"
    metric = Metric("accuracy", percent=True)

    def check(self, data: Data) -> None:
        length = data.shape[-1]
        refuse_other_labels(data, self, (length,), f"{length} labels, integers: one for each position")

    def class_axis(self, shape: tuple[int, ...]) -> int:
        return 1 if len(shape) == 1 else 0

    def output_shape(self, data: Data) -> tuple[int, ...]:
        length = data.shape[-1]
        return (length, data.outputs) if len(data.shape) == 1 else (data.outputs, length)

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(result if batch.inputs.dim() == 2 else result.movedim(1, -1))

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return Accuracy(self.class_axis(shape) + 1)

    def chance(self, inputs: Array, targets: Array) -> float:
        return most_frequent(targets)
