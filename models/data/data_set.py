"""What a data set is: samples (input, target) to train and to test on, and what a model must know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.files import limits
from subbyte.models.data.normalization import Normalization

Augment = Callable[[Tensor, torch.Generator], Tensor]
INPUT_TYPES = ("float32", "int64")  # of an input: real values, or tokens


@dataclass(frozen=True)
class Data:
    """A training set and a test set of samples (input Tensor, target), and what a model must know of them.

    Raises DataError for a set without samples or without a length, and for a shape, a number of outputs or a type of
    input that there cannot be.
    """

    name: str
    train: Dataset[tuple[Tensor, Any]]
    test: Dataset[tuple[Tensor, Any]]
    shape: tuple[int, ...]  # of one input: [C, H, W] of an image, [C, L] of a series, [T] of tokens
    outputs: int  # classes, labels, values or tokens of the vocabulary
    dtype: str = "float32"  # of an input: one of INPUT_TYPES
    task: str = "classification"  # what it is for, unless a run says another
    task_options: Mapping[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None  # None: not known
    augment: Augment | None = None  # of a batch of inputs [N, ...] in training
    class_names: tuple[str, ...] = ()  # of the outputs
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # JSON: how an input is made before it is normalised

    def __post_init__(self) -> None:
        refuse_empty(self.name, self.train, self.test)
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if min(self.shape, default=0) < 1 or self.outputs < 1 or self.dtype not in INPUT_TYPES:
            raise DataError(
                f"data set '{self.name}': inputs {self.dtype} {list(self.shape)} and {self.outputs} outputs, expected "
                f"sizes of at least 1, at least one output, and {' or '.join(INPUT_TYPES)}."
            )

    @property
    def classes(self) -> int:
        """The outputs, where they are classes."""
        return self.outputs

    @property
    def channels(self) -> int:
        """Channels of an image; raises DataError for another input."""
        return self._of_image()[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image; raises DataError for another input."""
        _, height, width = self._of_image()
        return height, width

    def _of_image(self) -> tuple[int, ...]:
        if len(self.shape) != 3:
            raise DataError(
                f"data set '{self.name}': inputs are {self.dtype} {list(self.shape)}, expected images [C, H, W]; "
                "take a model for such inputs, or data of images."
            )
        return self.shape

    def test_arrays(self, limit: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The first `limit` (all) test samples: inputs [N, ...] of the data's type, targets [N, ...], int64 or float32.

        Raises DataError for samples of several shapes, and for a target that is no number and no array of them.
        """
        count = len(self.test)  # type: ignore[arg-type]
        pairs = [self.test[index] for index in range(count if limit is None else min(limit, count))]
        inputs = _stacked(self.name, "inputs", [sample for sample, _ in pairs]).astype(self.dtype, copy=False)
        targets = _stacked(self.name, "targets", [target for _, target in pairs])
        return inputs, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int64, copy=False)


def _stacked(name: str, what: str, values: Sequence[Any]) -> npt.NDArray[Any]:
    try:
        stacked = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(f"data set '{name}': its {what} have several shapes ({error}); give all one shape.") from error
    if stacked.dtype.kind not in "biuf":
        raise DataError(f"data set '{name}': its {what} are {stacked.dtype}, expected numbers.")
    return stacked


def refuse_large(name: str, values: int) -> None:
    """Raise DataError where inputs of so many values would be made in memory."""
    if values > limits.DATA_VALUES:
        raise DataError(
            f"data set '{name}': {values} values, all samples of one shape, are more than {limits.DATA_VALUES}; take "
            "fewer or shorter samples."
        )


def refuse_empty(name: str, train: Dataset[Any], test: Dataset[Any]) -> None:
    """Raise DataError for a set without samples or without a length."""
    for part, samples in (("training", train), ("test", test)):
        try:
            count = len(samples)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(f"data set '{name}': the {part} set has no length; give a Dataset that has one.") from error
        if count == 0:
            raise DataError(f"data set '{name}': the {part} set is empty; give it at least one sample.")
