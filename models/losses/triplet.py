"""The triplet loss: a sample is nearer to one of its class than to any other, by a margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from subbyte.models.losses.outputs import Outputs, Targets
from subbyte.models.losses.register import loss
from subbyte.models.options import Positive


@loss(
    "triplet",
    needs=("embeddings", "label"),
    source="Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017, eq. 5",
    good_for=("embeddings",),
    per="sample",
    coupled=True,
)
def batch_hard_triplet(outputs: Outputs, targets: Targets, margin: Positive = 0.2) -> Tensor:
    """triplets of the batch: the farthest of a sample's class nearer than the nearest other, by a margin

    max(0, margin + max_p d(i, p) - min_n d(i, n)), d = |z_i - z_j|^2 of z of length 1; 0 for a sample without another
    of its class, or without one of another. (The paper's d is not squared, and its z are not of length 1.)
    """
    z = normalize(outputs.embeddings, dim=-1)
    distance = 2 - 2 * z @ z.T
    same = targets.label[:, None] == targets.label
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)
    counts = positive.any(1) & ~same.all(1)
    gap = torch.where(counts, margin + farthest - nearest, torch.zeros_like(farthest))
    return gap.clamp(min=0)
