"""Losses that learn from a teacher's logits [M, C]."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.models.losses.classification import Smoothing, cross_entropy
from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import loss
from subbyte.models.options import Positive, Share


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) as [M]; a probability of 0 adds 0."""
    log_p, log_q = torch.log_softmax(teacher, dim=-1), torch.log_softmax(student, dim=-1)
    p = log_p.exp()
    terms = p * (log_p - log_q)
    return torch.where(p > 0, terms, torch.zeros_like(terms)).sum(-1)


@loss(
    "kd",
    needs=("logits", "label|soft", "teacher.logits"),
    source="Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2",
    good_for=("small networks",),
)
def knowledge_distillation(
    outputs: Outputs,
    targets: Targets,
    temperature: Positive = 2.0,
    alpha: Share = 0.5,
    label_smoothing: Smoothing = 0.0,
) -> Tensor:
    """knowledge distillation: cross-entropy + teacher's soft labels

    (1 - alpha) CE + alpha T^2 KL(softmax(t / T) || softmax(s / T)), logits s of the student, t of the teacher.
    """
    hard = cross_entropy(outputs, targets, label_smoothing)
    soft = divergence(outputs.teacher.logits / temperature, outputs.logits / temperature)
    return (1 - alpha) * hard + alpha * temperature**2 * soft
