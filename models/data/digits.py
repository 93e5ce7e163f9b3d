"""The digits that come with scikit-learn: classes, or what else is to be said of a digit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from subbyte.errors import MissingDependencyError, UsageError
from subbyte.models.data.augmentation import shift_and_flip
from subbyte.models.data.data_set import Data
from subbyte.models.data.in_memory import ImageTensors, Samples
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data

Use = Literal["classification", "multi-label", "regression", "metric-learning", "contrastive", "few-shot"]
NAMES = tuple(str(digit) for digit in range(10))
PROPERTIES = {  # the labels of `multi-label`, and which digits have them
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "above four": (5, 6, 7, 8, 9),
    "square": (0, 1, 4, 9),
    "with a loop": (0, 6, 8, 9),
}
UNSEEN = {"metric-learning": 5, "few-shot": 5}  # digits that are in the test set alone, unless the option says another


@register_data(
    "digits", summary="1,797 handwritten digits, in scikit-learn; task=... for other targets", shape=(1, 8, 8)
)
def digits(task: Use = "classification", unseen: int | None = None) -> Data:
    """The digits that ship with scikit-learn: 1,437 to train on and 360 to test, a fixed split.

    `task` is what the targets are for: `multi-label`, which of five properties a digit has; `regression`, its value.
    The last `unseen` digits are in the test set alone, and no other is; 5 for `metric-learning` and `few-shot`.

    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), UCI Machine Learning Repository.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "train") from error
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    pixels = torch.from_numpy(raw.images[order].astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(raw.target[order].astype(np.int64))
    trained, tested = _split(labels, UNSEEN.get(task, 0) if unseen is None else unseen)
    targets, names = _targets(labels, task)
    kind = Samples if targets is not labels else ImageTensors
    normalization = Normalization(16.0, (0.3053,), (0.3761,))  # of all 1,797 images
    return Data(
        "digits",
        kind(pixels[trained], targets[trained], normalization),
        kind(pixels[tested], targets[tested], normalization),
        shape=(1, 8, 8),
        outputs=len(names),
        task=task,
        normalization=normalization,
        augment=shift_and_flip(1, flip=False) if task == "contrastive" else None,
        class_names=names,
    )


def _split(labels: Tensor, unseen: int) -> tuple[Tensor, Tensor]:
    """The numbers of the samples to train on, and of those to test on."""
    if not 0 <= unseen <= 9:
        raise UsageError(f"data set 'digits': option 'unseen' is {unseen}, expected 0 to 9 of its ten digits.")
    numbers = torch.arange(len(labels))
    if unseen == 0:
        return numbers[360:], numbers[:360]
    known = labels < 10 - unseen
    return numbers[known], numbers[~known]


def _targets(labels: Tensor, task: Use) -> tuple[Tensor, tuple[str, ...]]:
    """The targets [N] or [N, K], and the names of the outputs."""
    if task == "multi-label":
        columns = [torch.isin(labels, torch.tensor(members)) for members in PROPERTIES.values()]
        return torch.stack(columns, 1).to(torch.int64), tuple(PROPERTIES)
    if task == "regression":
        return labels.to(torch.float32).unsqueeze(1), ("value",)
    return labels, NAMES
