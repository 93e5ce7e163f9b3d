"""What accuracy is scored on: inputs that the model takes, and its first output, which must be logits [N, classes]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.errors import UsageError

Array = npt.NDArray[Any]


def refuse_unscorable(name: str, shape: Sequence[int], labels: Array, data: str, where: str = "the model") -> None:
    """Raise UsageError where the first output, `name` of `shape` (0: a dynamic size), cannot be logits for `labels`."""
    classes = int(np.max(labels, initial=0)) + 1
    if len(shape) == 2 and (shape[1] >= classes or not shape[1]):
        return
    raise UsageError(
        f"accuracy is scored on the first output of {where}, and '{name}' of shape {list(shape)} holds no logits "
        f"[N, {classes}] for the {classes} classes of data set '{data}': return the logits first, or leave the data out"
    )


def refuse_other_samples(samples: Array, shape: Sequence[int], dtype: str, data: str) -> None:
    """Raise UsageError unless the inputs [N, ...] of a data set are of `shape` (without N) and `dtype`."""
    if samples.shape[1:] != tuple(shape) or samples.dtype != dtype:
        raise UsageError(
            f"data set '{data}' has inputs of {samples.dtype} {list(samples.shape[1:])}, the model expects {dtype} "
            f"{list(shape)}"
        )


def scored_on(names: Sequence[str]) -> str:
    """Which output predictions are read from, where there are several; else nothing."""
    return f"'{names[0]}', the first of {len(names)} outputs" if len(names) > 1 else ""
