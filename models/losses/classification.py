"""Losses for classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import UsageError
from subbyte.models.losses.loss import (
    LossOutput,
    Outputs,
    Reduction,
    Targets,
    keep_selected,
    reduce_samples,
    register_loss,
    required,
    selection,
)


def cross_entropy_per_sample(logits: Tensor, label: Tensor | None, soft: Tensor | None, smoothing: float) -> Tensor:
    """-sum_c q_c log softmax(logits)_c as [N]; q is `soft` or the one-hot label, mixed with 1/C by `smoothing`."""
    log_probability = torch.log_softmax(logits, dim=-1)
    if soft is None:
        index = required(label, "cross-entropy", "label").clamp_min(0).unsqueeze(-1)
        picked = -log_probability.gather(-1, index).squeeze(-1)
    else:
        picked = -(soft * log_probability).sum(-1)
    if smoothing == 0:
        return picked
    return (1 - smoothing) * picked - smoothing * log_probability.mean(-1)


@register_loss("cross-entropy", needs={"logits", "label"}, summary="softmax cross-entropy, with label smoothing")
@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy on logits [N, C] and labels [N] or soft targets [N, C].

    Label smoothing: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2016).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}.")

    def __call__(
        self,
        outputs: Outputs,
        targets: Targets,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        step: int | None = None,
        reduction: Reduction = "mean",
    ) -> LossOutput:
        logits = required(outputs.logits, "cross-entropy", "outputs.logits")
        chosen = selection(mask, targets.label, logits)
        logits = keep_selected(logits, chosen)
        per_sample = cross_entropy_per_sample(logits, targets.label, targets.soft, self.label_smoothing)
        value = reduce_samples(per_sample, chosen, weight, reduction)
        return LossOutput(value, keep_selected(per_sample, chosen))
