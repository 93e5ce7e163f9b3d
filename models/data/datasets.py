"""Data of any two torch Datasets: of the caller's, or of a program by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError, UsageError
from subbyte.models.data.data_set import INPUT_TYPES, Augment, Data, refuse_empty
from subbyte.models.data.named_object import import_named
from subbyte.models.data.normalization import Normalization
from subbyte.models.data.register import register_data


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    classes: int | None = None,
    name: str = "custom",
    task: str = "classification",
    normalization: Normalization | None = None,
    augment: Augment | None = None,
) -> Data:
    """`Data` of any two torch Datasets of (input, target): float32 or int64 [...], and what the task has as target.

    `classes`, how many outputs there are, defaults to 1 + the largest training label, where targets are one label each.
    For task options and class names make a `Data`. Raises `DataError` for samples that are not that, or none.
    """
    refuse_empty(name, train, test)
    try:
        one, target = train[0]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"data set '{name}': train[0] must be (input, target), but reading it failed: {error}"
        ) from error
    if not isinstance(one, Tensor) or one.dim() == 0 or one.dtype not in (torch.float32, torch.int64):
        got = f"{tuple(one.shape)} {one.dtype}" if isinstance(one, Tensor) else type(one).__name__
        raise DataError(
            f"data set '{name}': inputs must be {' or '.join(INPUT_TYPES)} tensors of one axis or more, got {got}."
        )
    if classes is None:
        label = torch.as_tensor(target)
        if label.dim() or label.dtype.is_floating_point:
            raise DataError(
                f"data set '{name}': targets are {label.dtype} {list(label.shape)}; say `classes`, how many."
            )
        classes = 1 + max(int(train[index][1]) for index in range(len(train)))  # type: ignore[arg-type]
    dtype = str(one.dtype).removeprefix("torch.")
    return Data(name, train, test, tuple(one.shape), classes, dtype, task, normalization=normalization, augment=augment)


@register_data(
    "dataset", summary="any Datasets of your program: data_path is package.module:name, which is run", shape=()
)
def dataset(path: Path, task: str = "classification", classes: int | None = None) -> Data:
    """The object `package.module:name`: a `Data`, a pair (train, test) of Datasets, or a function that gives one.

    `task` and `classes` describe a pair. Importing the module runs it.
    """
    found = import_named(str(path))
    if callable(found) and not isinstance(found, Data):
        found = found()
    if isinstance(found, Data):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise UsageError(f"'{path}' is a {type(found).__name__}, expected a Data or a pair (train, test) of Datasets.")
    return from_datasets(found[0], found[1], name="dataset", task=task, classes=classes)
