"""Contrastive losses: embeddings of samples that belong together are pulled together, others apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from subbyte.models.losses.memory import Queue, QueueOf
from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import loss
from subbyte.models.options import Count, Positive


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


@loss(
    "clip",
    needs=("views",),
    source="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, figure 3",
    good_for=("embeddings", "two encoders"),
    per="sample",
    coupled=True,
    learned=("temperature",),
)
def symmetric_info_nce(outputs: Outputs, targets: Targets, temperature: Positive = 0.07) -> Tensor:
    """InfoNCE between the first two views in both directions, with a learned temperature

    s_ij = cos(a_i, b_j) / T; mean of -log softmax(s_i.)_i and -log softmax(s_.i)_i.
    """
    first, second = normalize(outputs.embeddings[:, :2], dim=-1).unbind(1)
    similarity = first @ second.T / temperature
    forth, back = torch.log_softmax(similarity, dim=1), torch.log_softmax(similarity, dim=0)
    return -(forth.diagonal() + back.diagonal()) / 2


@loss(
    "moco",
    needs=("embeddings", "teacher.embeddings"),
    source="He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, eq. 1",
    good_for=("embeddings", "small batches"),
    per="sample",
    memory={"queue": QueueOf("teacher.embeddings", length="length")},
)
def momentum_contrast(
    outputs: Outputs, targets: Targets, queue: Queue, temperature: Positive = 0.07, length: Count = 4096
) -> Tensor:
    """InfoNCE against a queue of the last `length` embeddings of the teacher

    -log(exp(q k / T) / (exp(q k / T) + sum_j exp(q k_j / T))): q of the network, k of the teacher for the same sample,
    k_j of the queue, all of length 1. The teacher is a moving average of the network, or another network.
    """
    query, key = normalize(outputs.embeddings, dim=-1), normalize(outputs.teacher.embeddings, dim=-1)
    own = (query * key).sum(-1, keepdim=True)
    logits = torch.cat([own, query @ queue.rows.T], dim=-1) / temperature
    queue.push(key)
    return -torch.log_softmax(logits, dim=-1)[:, 0]
