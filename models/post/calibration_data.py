"""Which samples of a data set calibrate: some of its training set, chosen by a seed, not augmented."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from subbyte.errors import DataError
from subbyte.models.data import Data
from subbyte.models.post.calibration import check_batches
from subbyte.models.train.batches import Batched

SAMPLES = 512  # unless a number is asked for, or the training set has fewer


def calibration_batches(data: Data, samples: int | None, batch_size: int, seed: int) -> list[Tensor]:
    """Batches of inputs [n, ...] of the training set, `samples` in all; raises as `calibration_samples`."""
    return [inputs for inputs, _ in calibration_samples(data, samples, batch_size, seed)]


def calibration_samples(data: Data, samples: int | None, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of (inputs [n, ...], targets [n, ...]) of the training set, `samples` in all.

    Raises DataError for more samples than there are, labels of one class alone, NaN, and zeros everywhere.
    """
    there = len(data.train)  # type: ignore[arg-type]
    if samples is not None and samples > there:
        raise DataError(
            f"data set '{data.name}': {samples} calibration samples are asked for, its training set has {there}; ask "
            "for at most as many."
        )
    count = min(SAMPLES, there) if samples is None else samples
    order = np.random.default_rng(seed).permutation(there)[:count].tolist()
    dataset = Batched(data.train)
    read = [dataset[order[start : start + batch_size]] for start in range(0, count, batch_size)]
    batches = [(inputs, torch.as_tensor(targets)) for inputs, targets in read]
    check_batches([inputs for inputs, _ in batches])
    _refuse_one_class(data, torch.cat([targets for _, targets in batches]))
    return batches


def _refuse_one_class(data: Data, targets: Tensor) -> None:
    labels = not targets.is_floating_point() and targets.dim() == 1 and data.outputs > 1
    if labels and len(targets) > 1 and bool((targets == targets[0]).all()):
        raise DataError(
            f"data set '{data.name}': all {len(targets)} calibration samples are of class {int(targets[0])}, of "
            f"{data.outputs}: the ranges of the others are unknown. Take samples of all classes, more of them "
            "(samples), or another seed."
        )
