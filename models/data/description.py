"""A data set in words: how many samples, what they are, and how their targets are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.models.data.data_set import Data

LOOKED_AT = 1_000  # samples that are read of a set that cannot say its targets without its inputs
SHOWN = 20  # names or counts in one line

Array = npt.NDArray[Any]


def describe(data: Data) -> list[tuple[str, str]]:
    """What is to be said of a data set: (title, text) for each line."""
    options = ", ".join(f"{name}={value}" for name, value in data.task_options.items())
    rows = [
        ("task", data.task + (f" ({options})" if options else "")),
        ("input", f"{data.dtype} {list(data.shape)}"),
        ("outputs", str(data.outputs) + (f": {_listed(data.class_names)}" if data.class_names else "")),
    ]
    for part, dataset in (("train", data.train), ("test", data.test)):
        count = len(dataset)  # type: ignore[arg-type]
        targets = _targets(dataset)
        of = f"{count:,} samples" if len(targets) == count else f"{count:,} samples; of the first {len(targets):,}"
        rows.append((part, f"{of}: {_balance(targets, data)}"))
    if data.preprocessing:
        rows.append(("made by", _short(str(dict(data.preprocessing)))))
    return rows


def _targets(dataset: Dataset[Any]) -> Array:
    """The targets of all samples, where the set holds them, else those of the first ones."""
    held = getattr(dataset, "targets", None)
    if isinstance(held, Tensor) and len(held) == len(dataset):  # type: ignore[arg-type]
        return np.asarray(held)
    count = min(LOOKED_AT, len(dataset))  # type: ignore[arg-type]
    fetch = getattr(dataset, "batch", None)
    if fetch is not None:
        return np.asarray(fetch(range(count))[1])
    return np.stack([np.asarray(dataset[index][1]) for index in range(count)])


def _balance(targets: Array, data: Data) -> str:
    if targets.dtype.kind == "f":
        return (
            f"values from {targets.min():.4g} to {targets.max():.4g}, mean {targets.mean():.4g}, deviation "
            f"{targets.std():.4g}"
        )
    if data.task == "multi-label":
        share = [f"{one:.1%}" for one in (targets > 0).mean(0)]
        return f"share of each label {_named(share, data)}"
    counts = np.bincount(targets[targets >= 0], minlength=data.outputs)
    if data.task == "language-modelling":
        return f"{targets.size:,} tokens, {(counts > 0).sum():,} different ones of {data.outputs:,}"
    if targets.ndim == 1:
        return f"samples of each class {_named([f'{count:,}' for count in counts], data)}"
    return f"share of each class {_named([f'{share:.1%}' for share in counts / max(1, counts.sum())], data)}"


def _named(values: Sequence[str], data: Data) -> str:
    names = data.class_names or tuple(map(str, range(len(values))))
    return _listed([f"{name}: {value}" for name, value in zip(names, values, strict=False)])


def _listed(words: Sequence[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
