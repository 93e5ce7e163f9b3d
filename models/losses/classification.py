"""Losses for classification: logits [M, C] and a label or a probability of every class; scores [M] and yes or no."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn.functional import softplus

from subbyte.models.losses.outputs import Outputs, Targets, at_label
from subbyte.models.losses.register import loss
from subbyte.models.options import Positive, Within

Smoothing = Annotated[float, Within(0, 1, "[)")]


@loss(
    "cross-entropy",
    alias="ce",
    needs=("logits", "label|soft"),
    source="Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7",
)
def cross_entropy(outputs: Outputs, targets: Targets, label_smoothing: Smoothing = 0.0) -> Tensor:
    """softmax cross-entropy, with label smoothing

    -sum_c q_c log p_c; q is the soft target, else the label, mixed with 1/C by `label_smoothing`.
    """
    log_p = outputs.log_probabilities
    hard = -(targets.soft * log_p).sum(-1) if "soft" in targets else -at_label(log_p, targets.label)
    if label_smoothing == 0:
        return hard
    return (1 - label_smoothing) * hard - label_smoothing * log_p.mean(-1)


@loss(
    "binary-cross-entropy",
    alias="bce",
    needs=("scores", "label"),
    source="Cox, The Regression Analysis of Binary Sequences, 1958",
    good_for=("several labels per sample",),
)
def binary_cross_entropy(outputs: Outputs, targets: Targets, positive_weight: Positive = 1.0) -> Tensor:
    """cross-entropy of a sigmoid for each label that is 0 or 1

    -w y log s - (1 - y) log(1 - s), s = sigmoid(score), w = `positive_weight`.
    """
    yes, score = targets.label.to(outputs.scores.dtype), outputs.scores
    return positive_weight * yes * softplus(-score) + (1 - yes) * softplus(score)
