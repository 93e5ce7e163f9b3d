"""A part of the training set that is held out to choose by, so that the test set is scored once, with what was chosen.

An accuracy that chose an epoch overestimates that on new data: it may not be the one that is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.models.data import Data
from subbyte.models.tasks import Task
from subbyte.models.train.batches import EpochBatches, batch_loader

SHARE = 0.1  # of the training set, where epochs are chosen and the run says no share
_STREAM = 0x8E1D  # beside the seed: a sequence of random numbers of its own


class Part(Dataset[Any]):
    """Some samples of a Dataset, with its labels, and in whole batches where it offers them."""

    def __init__(self, dataset: Dataset[Any], indices: npt.NDArray[np.int64]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The label of every sample, where the Dataset has them at hand."""
        labels = getattr(self.dataset, "labels", None)
        return None if labels is None else np.asarray(labels)[self.indices]

    @property
    def batch(self) -> Callable[[Sequence[int]], Any] | None:
        """What reads several samples in one step, where the Dataset has it."""
        fetch = getattr(self.dataset, "batch", None)
        return None if fetch is None else lambda indices: fetch(self.indices[list(indices)].tolist())


def hold_out(data: Data, share: float, seed: int) -> tuple[Data, Dataset[Any]]:
    """The data without a share of its training samples, drawn by the seed, and those; raises DataError for too few."""
    count = len(data.train)  # type: ignore[arg-type]
    held = round(share * count)
    if not 0 < held < count:
        raise DataError(
            f"data set '{data.name}': a share of {share:g} of {count} training samples is {held}; hold out another "
            "share (held_out), or train with keep='last' and no patience."
        )
    order = np.random.default_rng((seed, _STREAM)).permutation(count)
    rest, chosen = np.sort(order[held:]), np.sort(order[:held])
    return replace(data, train=Part(data.train, rest)), Part(data.train, chosen)


def final_score(model: nn.Module, data: Data, task: Task, batch_size: int) -> float:
    """The score of a model in eval mode, on the CPU, on the whole test set."""
    score = task.score(data.shape)
    order = EpochBatches(len(data.test), batch_size, shuffle=False)  # type: ignore[arg-type]
    with torch.no_grad():
        for inputs, target in batch_loader(data.test, order):
            score.add(model(inputs).numpy(), target.numpy())
    return score.result()
