"""Scores in NumPy: batches of a network's output and of targets go in, one number comes out.

Training, `check` and `bench --baseline` score with the same code. A `Sums` keeps sums over the batches; a `Rows` keeps
every row, where a sample is compared with the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """What a score is called and how it is read. `name` is that of columns and fields: lower case, with underscores."""

    name: str
    higher_is_better: bool = True
    percent: bool = False  # a share of 1, which is written in percent

    @property
    def title(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")

    def words(self, value: float) -> str:
        """The value as it is printed: 97.20%, or four significant digits."""
        return f"{100 * value:.2f}%" if self.percent else f"{value:.4g}"

    def better(self, value: float) -> float:
        """A number that is larger where the value is better."""
        return value if self.higher_is_better else -value


class Score(ABC):
    """A score over batches."""

    @abstractmethod
    def add(self, output: Array, target: Array) -> None:
        """Count a batch: output [N, ...] of the network, target [N, ...] as the data has it."""

    @abstractmethod
    def result(self) -> float:
        """The score of all that was counted; 0 of nothing."""

    @abstractmethod
    def state(self) -> list[Array]:
        """What was counted, as arrays."""

    @abstractmethod
    def merge(self, state: Sequence[Array]) -> None:
        """Count what another score of this kind did, by its state."""


class Sums(Score):
    """A score of sums over positions, such as the share that is right."""

    def __init__(self) -> None:
        self.total: Array = np.zeros(())

    @abstractmethod
    def count(self, output: Array, target: Array) -> Array:
        """The sums of a batch, float64, in one shape for all batches."""

    @abstractmethod
    def measure(self, total: Array) -> float:
        """The score of the sums of all batches."""

    def add(self, output: Array, target: Array) -> None:
        self.total = self.total + self.count(output, target)

    def result(self) -> float:
        return self.measure(self.total) if self.total.ndim else 0.0

    def state(self) -> list[Array]:
        return [self.total]

    def merge(self, state: Sequence[Array]) -> None:
        for total in state:
            self.total = self.total + total


class Rows(Score):
    """A score of all rows together, such as recall among them."""

    def __init__(self) -> None:
        self.rows: list[tuple[Array, Array]] = []

    @abstractmethod
    def measure(self, outputs: Array, targets: Array) -> float:
        """The score of all outputs [N, ...] and targets [N, ...]."""

    def add(self, output: Array, target: Array) -> None:
        self.rows.append((output, target))

    def result(self) -> float:
        if not self.rows:
            return 0.0
        outputs, targets = zip(*self.rows, strict=True)
        return self.measure(np.concatenate(outputs), np.concatenate(targets))

    def state(self) -> list[Array]:
        return [array for pair in self.rows for array in pair]

    def merge(self, state: Sequence[Array]) -> None:
        self.rows += list(zip(state[::2], state[1::2], strict=True))


def ratio(total: Array) -> float:
    """The first sum over the second; 0 where nothing was counted."""
    return float(total[0] / total[1]) if total[1] else 0.0


class Accuracy(Sums):
    """The share of the positions whose largest logit is at the label; positions of a negative label do not count.

    Logits [N, ..., C] with the classes on `axis`, labels int64 [N, ...].
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def count(self, output: Array, target: Array) -> Array:
        counts = target >= 0
        return np.array([((output.argmax(self.axis) == target) & counts).sum(), counts.sum()], np.float64)

    def measure(self, total: Array) -> float:
        return ratio(total)


def most_frequent(targets: Array) -> float:
    """The accuracy of giving the most frequent label everywhere."""
    labels = targets[targets >= 0]
    return float(np.bincount(labels).max() / labels.size) if labels.size else 0.0
