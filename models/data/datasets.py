"""Data of any two torch Datasets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.models.data.data_set import Augment, Data, refuse_empty
from subbyte.models.data.normalization import Normalization


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    classes: int | None = None,
    name: str = "custom",
    normalization: Normalization | None = None,
    augment: Augment | None = None,
) -> Data:
    """`Data` of any two torch Datasets of (float32 image [C, H, W], label).

    `classes` defaults to 1 + the largest training label. Raises `DataError` for samples that are not that, or none.
    """
    refuse_empty(name, train, test)
    try:
        image, _ = train[0]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"data set '{name}': train[0] must be (image, label), but reading it failed: {error}"
        ) from error
    if not isinstance(image, Tensor) or image.dim() != 3 or image.dtype != torch.float32:
        got = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(
            f"data set '{name}': images must be float32 tensors [channels, height, width], got {got}. Give others axes "
            "of size 1, which the forward takes out, or train `quantize(model, scheme)` in a loop of your own."
        )
    if classes is None:
        classes = 1 + max(int(train[index][1]) for index in range(len(train)))  # type: ignore[arg-type]
    return Data(name, train, test, tuple(image.shape), classes, normalization=normalization, augment=augment)
