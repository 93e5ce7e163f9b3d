"""A random sample of the values that pass a place, of bounded size, with the smallest and the largest value."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.errors import QuantizationError
from subbyte.models.quant.statistics import SAMPLED


class Sample:
    """At most `most` elements of all rows together; every element of each call has the same chance to be in it.

    All elements are there while they are at most `most`. The smallest and the largest value of each row always are.
    The sample is the same in every run.
    """

    def __init__(self, most: int = SAMPLED) -> None:
        self.most = most
        self.values = torch.empty(0)  # [rows, elements]
        self.keys = torch.empty(0)  # [elements], of those with the smallest random keys
        self.bounds = torch.empty(0)  # [rows, 2]
        self.seen = 0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, rows: Tensor) -> None:
        """Take in float32 [rows, elements]; raises QuantizationError for NaN and infinity."""
        rows = rows.detach().to("cpu", torch.float32)
        if not rows.numel():
            return
        if not bool(torch.isfinite(rows).all()):
            raise QuantizationError("it holds NaN or infinity")
        bounds = torch.stack([rows.amin(dim=1), rows.amax(dim=1)], dim=1)
        self.bounds = bounds if not self.seen else torch.cat([self.bounds, bounds], dim=1)
        self.bounds = torch.stack([self.bounds.amin(dim=1), self.bounds.amax(dim=1)], dim=1)
        self._keep(rows, torch.rand(rows.shape[1], generator=self._generator))
        self.seen += rows.numel()

    def _keep(self, rows: Tensor, keys: Tensor) -> None:
        most = max(1, self.most // len(rows))
        if len(self.keys) == most:
            chosen = (keys < self.keys.max()).nonzero().flatten()
            rows, keys = rows[:, chosen], keys[chosen]
        values = torch.cat([self.values, rows], dim=1) if self.seen else rows
        keys = torch.cat([self.keys, keys])
        if len(keys) > most:
            keys, order = keys.topk(most, largest=False)
            values = values[:, order]
        self.values, self.keys = values.clone(), keys

    def rows(self) -> Tensor:
        """The sample, float32 [rows, elements]; with the bounds where it is not whole."""
        whole = self.values.numel() == self.seen
        return self.values if whole else torch.cat([self.values, self.bounds], dim=1)
