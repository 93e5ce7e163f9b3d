"""Augmentation of whole batches in training."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.models.data.data_set import Augment


def shift_and_flip(pixels: int, flip: bool = True) -> Augment:
    """Move each image by up to `pixels` in each direction (edges repeat) and mirror half of them."""

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        shifts = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)
        rows = (torch.arange(height) + shifts[0]).clamp_(0, height - 1)
        columns = (torch.arange(width) + shifts[1]).clamp_(0, width - 1)
        if flip:
            mirrored = torch.rand(count, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        places = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).reshape(count, 1, -1).to(images.device)
        moved = images.flatten(2).gather(2, places.expand(-1, channels, -1))
        return moved.reshape(images.shape)

    return augment
