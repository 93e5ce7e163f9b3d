"""Samples that are held in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from subbyte.errors import DataError
from subbyte.models.data.normalization import Normalization


class ImageTensors(Dataset[tuple[Tensor, int]]):
    """Images held in memory as uint8 [N, C, H, W] and labels int64 [N]; gives single samples, or whole batches fast."""

    def __init__(self, pixels: Tensor, labels: Tensor, normalization: Normalization) -> None:
        if len(pixels) != len(labels):
            raise DataError(f"there are {len(pixels)} images but {len(labels)} labels.")
        self.pixels, self.labels, self.normalization = pixels, labels.to(torch.int64), normalization

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalization(self.pixels[index]), int(self.labels[index])

    def batch(self, indices: Sequence[int] | slice) -> tuple[Tensor, Tensor]:
        """Images float32 [n, C, H, W] and labels int64 [n]."""
        return self.normalization(self.pixels[indices]), self.labels[indices]
