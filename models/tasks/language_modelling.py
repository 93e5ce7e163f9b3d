"""Language modelling: the next token at each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.tasks.base import Batch, Task, refuse_misfit, refuse_other_labels, samples
from subbyte.models.tasks.register import task
from subbyte.models.tasks.score import Array, Metric, Score, Sums, ratio

if TYPE_CHECKING:
    from subbyte.models.data import Data


class Bits(Sums):
    """The mean of -log2 softmax(logits) at the next token; logits [N, T, V], tokens [N, T], negative ones left out."""

    def count(self, output: Array, target: Array) -> Array:
        counts = target >= 0
        logits, next_token = output[counts].astype(np.float32), target[counts]
        top = logits.max(-1, initial=-np.inf)
        log_sum = np.log(np.exp(logits - top[:, None]).sum(-1)) + top
        nats = log_sum - np.take_along_axis(logits, next_token[:, None], -1)[:, 0]
        return np.array([nats.sum(dtype=np.float64) / np.log(2), next_token.size], np.float64)

    def measure(self, total: Array) -> float:
        return ratio(total)


@task("language-modelling")
@dataclass(frozen=True)
class LanguageModelling(Task):
    """the next token at each position: tokens [N, T] in, logits [N, T, V], label [N, T] the tokens moved by one

    `unit` is what a token is: "byte" of a tokenizer of bytes, else "token". The metric is bits per unit. Chance is the
    entropy of the tokens of the test set by their frequency there: no guess that ignores the context is below it.
    """

    gives = frozenset({"logits", "label", "ids"})
    loss = "cross-entropy"
    measured_in_training = False  # the loss says it
    unit: Literal["byte", "token"] = "token"

    @property
    def metric(self) -> Metric:
        return Metric(f"bits_per_{self.unit}", higher_is_better=False)

    def check(self, data: Data) -> None:
        if data.dtype != "int64" or len(data.shape) != 1:
            refuse_misfit(data, self, "inputs of tokens, int64 [T]", f"inputs {data.dtype} {list(data.shape)}")
        says = f"{data.shape[0]} labels, the token that follows each of the input"
        refuse_other_labels(data, self, data.shape, says)
        for tokens, label in samples(data):
            if not np.array_equal(label[:-1][label[:-1] >= 0], tokens[1:][label[:-1] >= 0]):
                refuse_misfit(data, self, says, "labels that are other tokens")
            if tokens.min() < 0 or tokens.max() >= data.outputs:
                refuse_misfit(data, self, f"tokens below {data.outputs}, the vocabulary", f"token {tokens.max()}")

    def class_axis(self, shape: tuple[int, ...]) -> int:
        return 1

    def output_shape(self, data: Data) -> tuple[int, ...]:
        return (*data.shape, data.outputs)

    def outputs(self, result: Tensor, batch: Batch) -> Outputs:
        return Outputs(result)

    def targets(self, batch: Batch) -> Targets:
        return Targets(batch.target, ids=batch.ids)

    def score(self, shape: tuple[int, ...]) -> Score:
        return Bits()

    def chance(self, inputs: Array, targets: Array) -> float:
        share = np.bincount(targets[targets >= 0]) / max(1, (targets >= 0).sum())
        return float(-(share[share > 0] * np.log2(share[share > 0])).sum())
