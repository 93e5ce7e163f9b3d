"""A task: what a batch is, how a forward of it becomes what losses read, and how a network is scored.

A task's class is a frozen dataclass whose fields are its options. To add one: a file in this folder
(docs/add-a-task.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from subbyte.errors import DataError
from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.score import Array, Metric, Score

if TYPE_CHECKING:
    from subbyte.models.data import Data

LOOKED_AT = 16  # samples of each set that `check` reads


@dataclass(frozen=True)
class Batch:
    """N samples of a data set, as training reads them."""

    inputs: Tensor  # [N, ...]
    target: Tensor  # [N, ...]
    ids: Tensor | None = None  # int64 [N], numbers of the samples, where a loss reads them


@dataclass(frozen=True)
class Episode:
    """A batch that is not any samples: `per_class` samples of each of `classes` classes, class by class."""

    classes: int
    per_class: int


@dataclass(frozen=True)
class Task(ABC):
    """What is learned. A subclass says the class variables and defines what is abstract here."""

    gives: ClassVar[frozenset[str]] = frozenset()  # names of losses.outputs.NEEDS that a batch and its forward provide
    loss: ClassVar[str] = ""  # the objective, unless a run says another
    measured_in_training: ClassVar[bool] = True  # whether training batches are scored, too
    tested_by_loss: ClassVar[bool] = True  # whether `loss` has a value on test samples in any order, one by one
    name: ClassVar[str] = ""  # set where it is registered
    summary: ClassVar[str] = ""

    # ---- what is learned from ----

    @property
    def views(self) -> int:
        """Rows of the network's batch that belong to one sample, each augmented by itself."""
        return 1

    @property
    def episode(self) -> Episode | None:
        """What a training batch is, where it is not any samples."""
        return None

    @abstractmethod
    def check(self, data: Data) -> None:
        """Raise DataError, with what is expected, where the data does not fit."""

    def outputs_for(self, data: Data) -> int:
        """How many outputs the network has: classes, labels, values, tokens, or the length of an embedding."""
        return data.outputs

    def output_shape(self, data: Data) -> tuple[int, ...]:
        """What the network gives for one sample, in the axes that torch has."""
        return (self.outputs_for(data),)

    def class_axis(self, shape: tuple[int, ...]) -> int | None:
        """Where the logits of an output have their classes, of the axes without the batch, for inputs of `shape`."""
        return None

    def fits(self, given: tuple[int, ...], data: Data) -> bool:
        """Whether a network that gives this for one sample (0: any size) is one; more classes than needed may be."""
        wanted, classes = self.output_shape(data), self.class_axis(data.shape)
        return len(given) == len(wanted) and all(
            not size or size == want or (axis == classes and size > want)
            for axis, (size, want) in enumerate(zip(given, wanted, strict=True))
        )

    # ---- what losses read ----

    @abstractmethod
    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        """What the network's result [N * views, ...] for a batch is, with the class axis at the end."""

    @abstractmethod
    def targets(self, batch: Batch) -> Targets:
        """What the network should have given."""

    # ---- what it is scored with ----

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """What the score is called, and which way is better."""

    @abstractmethod
    def score(self, shape: tuple[int, ...]) -> Score:
        """A new score, for inputs of `shape` without the batch."""

    @abstractmethod
    def chance(self, inputs: Array, targets: Array) -> float:
        """The score that a test set gives a guess which does not look at the sample, or the stated plain forecast."""

    def predictions(self, output: Array, shape: tuple[int, ...]) -> Array | None:
        """The decisions that an output [N, ...] means, for inputs of `shape`; None where it is real values."""
        axis = self.class_axis(shape)
        return None if axis is None else np.asarray(output.argmax(axis + 1))

    # ---- itself ----

    def options(self) -> dict[str, Any]:
        """Its options by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


# ---- how data may not fit ----


def samples(data: Data) -> list[tuple[Array, Array]]:
    """Some samples of both sets as arrays; raises DataError for what is not a pair (input, target) of numbers."""
    found = []
    with torch.random.fork_rng(devices=[]):  # a data set may draw random numbers
        for part, dataset in (("train", data.train), ("test", data.test)):
            for index in range(min(LOOKED_AT, len(dataset))):  # type: ignore[arg-type]
                try:
                    one, target = dataset[index]
                    pair = np.asarray(one), np.asarray(target)
                except (TypeError, ValueError, IndexError, KeyError) as error:
                    raise DataError(
                        f"data set '{data.name}': {part}[{index}] must be (input, target), but reading it failed: "
                        f"{error}"
                    ) from error
                _refuse_other_input(data, f"{part}[{index}]", pair[0])
                found.append(pair)
    return found


def _refuse_other_input(data: Data, place: str, one: Array) -> None:
    if one.shape != data.shape or str(one.dtype) != data.dtype:
        raise DataError(
            f"data set '{data.name}': the input of {place} is {one.dtype} {list(one.shape)}, expected {data.dtype} "
            f"{list(data.shape)}."
        )


def refuse_misfit(data: Data, task: Task, expected: str, found: str) -> None:
    """Raise DataError: the data is not that of the task."""
    raise DataError(
        f"data set '{data.name}' does not fit task '{task.name}': expected {expected}, got {found}. Take data of that "
        f"form, or another task; the data says '{data.task}'."
    )


def refuse_other_labels(data: Data, task: Task, shape: tuple[int, ...], says: str) -> None:
    """Raise DataError unless targets are int64 labels of `shape`, below `outputs`; negative ones are left out."""
    for _, target in samples(data):
        if target.dtype.kind not in "iu" or target.shape != shape:
            refuse_misfit(data, task, says, _described(target))
        if target.size and target.max() >= data.outputs:
            refuse_misfit(data, task, f"labels below {data.outputs}, the number of outputs", f"label {target.max()}")


def refuse_other_values(data: Data, task: Task, says: str) -> None:
    """Raise DataError unless targets are real values, as many as there are outputs."""
    for _, target in samples(data):
        if target.dtype.kind != "f" or target.size != data.outputs:
            refuse_misfit(data, task, f"{says} ({data.outputs} in all)", _described(target))


def _described(target: Array) -> str:
    return f"targets {target.dtype} {list(target.shape)}" if target.ndim else f"targets {target.dtype}"
