"""Samples that are held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.models.data.normalization import Normalization


class Samples(Dataset[tuple[Tensor, Any]]):
    """Inputs [N, ...] and targets [N, ...] in memory; gives single samples, or whole batches fast.

    Inputs are normalised when they are read, where there is a normalization. A target [N] is given as a number.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, normalization: Normalization | None = None) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"there are {len(inputs)} inputs but {len(targets)} targets.")
        self.inputs, self.targets, self.normalization = inputs, targets, normalization

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        target = self.targets[index]
        return self._normalised(self.inputs[index]), target if target.dim() else target.item()

    def batch(self, indices: Sequence[int] | slice) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and targets [n, ...]."""
        return self._normalised(self.inputs[indices]), self.targets[indices]

    def _normalised(self, inputs: Tensor) -> Tensor:
        return inputs if self.normalization is None else self.normalization(inputs)


class ImageTensors(Samples):
    """Images as uint8 [N, C, H, W] and labels int64 [N]; gives float32 images, normalised."""

    normalization: Normalization

    def __init__(self, pixels: Tensor, labels: Tensor, normalization: Normalization) -> None:
        super().__init__(pixels, labels.to(torch.int64), normalization)

    @property
    def pixels(self) -> Tensor:
        """uint8 [N, C, H, W]."""
        return self.inputs

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return self.targets
