"""Contrastive losses: embeddings of samples that belong together are pulled together, others apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import loss
from subbyte.models.options import Positive


@loss(
    "supcon",
    needs=("views", "label"),
    source="Khosla et al., Supervised Contrastive Learning, 2020, eq. 2",
    good_for=("embeddings",),
    per="sample",
    coupled=True,
)
def supervised_contrastive(
    outputs: Outputs, targets: Targets, temperature: Positive = 0.07, base_temperature: Positive = 0.07
) -> Tensor:
    """supervised contrastive: views of one class together, all others apart

    Mean over the views i of a sample and the other views p of its class of -log(exp(z_i z_p / T) / sum_a exp(z_i z_a /
    T)), a over all views but i, z of length 1; times T / base_temperature, as in the authors' code.
    """
    samples, views = outputs.embeddings.shape[:2]
    z = normalize(outputs.embeddings, dim=-1).flatten(0, 1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = torch.log_softmax((z @ z.T / temperature).masked_fill(itself, -torch.inf), dim=-1)
    label = targets.label.repeat_interleave(views)
    positive = (label[:, None] == label) & ~itself
    pulled = torch.where(positive, log_p, torch.zeros_like(log_p)).sum(-1) / positive.sum(-1)
    return -temperature / base_temperature * pulled.reshape(samples, views).mean(-1)
