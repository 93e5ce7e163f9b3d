"""Quantized networks of the zoo before any training: their size, latency and instructions are the final ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subbyte.models.quant import quantize
from subbyte.models.zoo import create_for_scheme
from subbyte.models.zoo.registry import Size, as_size

BATCHES = 2  # that the activation quantizers and the batch norms see


def untrained(
    name: str,
    scheme: str,
    *,
    channels: int = 1,
    size: int | Size = 8,
    classes: int = 10,
    batch: int = 8,
    seed: int = 0,
) -> tuple[nn.Module, Tensor]:
    """A model of the zoo with random weights, quantized and in eval mode, and random images float32 [batch, C, H, W].

    Quantizers and batch norms have seen such images. The random state of torch is left as it was. Raises
    UnknownNameError for the model or the scheme, UsageError for a size that cannot be.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images = torch.randn(batch, channels, *as_size(size))
        model = create_for_scheme(name, scheme, channels=channels, size=size, classes=classes)
        quantize(model, scheme, example=images[:1]).train()
        with torch.no_grad():
            for _ in range(BATCHES):
                model(torch.randn_like(images))
    return model.eval(), images
