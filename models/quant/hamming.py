"""Scores of binary queries and keys: how many of their signs agree, less how many differ."""

from __future__ import annotations

from torch import Tensor, nn

from subbyte.models.quant.estimators.reste import ThresholdActivation
from subbyte.models.quant.primitives import integer_sum


class HammingScores(nn.Module):
    """scores[..., i, j] = channels - 2 x the Hamming distance of the signs of query i and of key j, float32 integers.

    Queries [..., rows, channels] and keys [..., keys, channels] to [..., rows, keys]. Each channel has a learned
    threshold; training has the gradient of ReSTE. A compiled model compares 32 binary values at a time, without floats.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.queries, self.keys = ThresholdActivation(channels, 0), ThresholdActivation(channels, 0)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        if not self.queries.integer_mode:
            scores: Tensor = self.queries(queries) @ self.keys(keys).transpose(-2, -1)
            return scores
        return integer_sum(self.queries.codes(queries) @ self.keys.codes(keys).transpose(-2, -1))
