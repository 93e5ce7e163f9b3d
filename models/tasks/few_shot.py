"""Few-shot learning: classes are told apart by a few samples of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.options import Count
from subbyte.models.tasks.base import Batch, Episode, Task, refuse_other_labels
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Rows, Score

if TYPE_CHECKING:
    from subbyte.models.data import Data


class EpisodeAccuracy(Rows):
    """The accuracy of the nearest prototype over episodes of the test set, which are the same every time.

    Embeddings [N, D], labels [N]. 0 where too few classes have enough samples.
    """

    def __init__(self, task: FewShot) -> None:
        super().__init__()
        self.task = task

    def measure(self, outputs: Array, targets: Array) -> float:
        ways, shots, size = self.task.ways, self.task.shots, self.task.shots + self.task.queries
        members = [np.flatnonzero(targets == label) for label in np.unique(targets[targets >= 0])]
        members = [one for one in members if len(one) >= size]
        if len(members) < ways:
            return 0.0
        rng, right = np.random.default_rng(0), 0
        for _ in range(self.task.episodes):
            chosen = rng.choice(len(members), ways, replace=False)
            index = np.stack([rng.choice(members[one], size, replace=False) for one in chosen])
            z = outputs[index].astype(np.float64)  # [ways, shots + queries, D]
            distance = ((z[:, shots:, None] - z[:, :shots].mean(1)) ** 2).sum(-1)
            right += int((distance.argmin(-1) == np.arange(ways)[:, None]).sum())
        return right / (self.task.episodes * ways * self.task.queries)


@task("few-shot")
@dataclass(frozen=True)
class FewShot(Task):
    """`ways` classes told apart by `shots` samples of each, in episodes: embeddings [N, width], label [N]

    Snell et al., Prototypical Networks for Few-shot Learning, 2017: the logits of a query are -|z - prototype|^2. The
    metric is the accuracy over `episodes` fixed episodes of the test set, whose classes may be others. Chance is
    1 / ways.
    """

    gives = frozenset({"logits", "label"})
    loss = "cross-entropy"
    metric = Metric("episode_accuracy", percent=True)
    measured_in_training = False
    tested_by_loss = False  # a batch of tests is not an episode
    ways: Count = 5
    shots: Count = 1
    queries: Count = 5
    episodes: Count = 100
    width: Count = 64

    @property
    def episode(self) -> Episode:
        return Episode(self.ways, self.shots + self.queries)

    def check(self, data: Data) -> None:
        refuse_other_labels(data, self, (), "one label, an integer, for each sample")

    def outputs_for(self, data: Data) -> int:
        return self.width

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        z = result.reshape(self.ways, self.shots + self.queries, -1)
        prototypes, queries = z[:, : self.shots].mean(1), z[:, self.shots :].flatten(0, 1)
        return Outputs(-(queries[:, None] - prototypes).square().sum(-1))

    def targets(self, batch: Batch) -> Targets:
        ways = torch.arange(self.ways, device=batch.target.device)
        return Targets(ways.repeat_interleave(self.queries))

    def score(self, shape: tuple[int, ...]) -> Score:
        return EpisodeAccuracy(self)

    def chance(self, inputs: Array, targets: Array) -> float:
        return 1 / self.ways
