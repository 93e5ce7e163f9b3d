"""Losses that learn from a teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subbyte.errors import UsageError
from subbyte.models.losses.classification import cross_entropy_per_sample
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


def divergence_per_sample(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) as [N]; no gradient reaches the teacher."""
    log_teacher = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    log_student = torch.log_softmax(student / temperature, dim=-1)
    probability = log_teacher.exp()
    terms = probability * (log_teacher - log_student)
    return torch.where(probability > 0, terms, torch.zeros_like(terms)).sum(-1)


@register_loss(
    "kd", needs={"logits", "label", "teacher"}, summary="knowledge distillation: cross-entropy + teacher's soft labels"
)
@dataclass(frozen=True)
class KnowledgeDistillation:
    """(1 - alpha) CE + alpha T^2 KL(softmax(t / T) || softmax(s / T)), logits [N, C] of student s and teacher t.

    Distilling the Knowledge in a Neural Network (Hinton et al., 2015).
    """

    temperature: float = 2.0
    alpha: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(f"temperature must be positive, got {self.temperature}.")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be in [0, 1], got {self.alpha}.")
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
        logits = required(outputs.logits, "kd", "outputs.logits")
        teacher = required(outputs.teacher.logits if outputs.teacher else None, "kd", "outputs.teacher.logits")
        if teacher.shape != logits.shape:
            raise UsageError(
                f"loss 'kd': the teacher's logits are {tuple(teacher.shape)}, the student's {tuple(logits.shape)}."
            )
        chosen = selection(mask, targets.label, logits)
        logits, teacher = keep_selected(logits, chosen), keep_selected(teacher, chosen)
        hard = cross_entropy_per_sample(logits, targets.label, targets.soft, self.label_smoothing)
        soft = self.temperature**2 * divergence_per_sample(teacher, logits, self.temperature)
        per_sample = (1 - self.alpha) * hard + self.alpha * soft
        logs = {
            "cross_entropy": reduce_samples(hard.detach(), chosen, weight, "mean"),
            "distillation": reduce_samples(soft.detach(), chosen, weight, "mean"),
        }
        value = reduce_samples(per_sample, chosen, weight, reduction)
        return LossOutput(value, keep_selected(per_sample, chosen), logs)
