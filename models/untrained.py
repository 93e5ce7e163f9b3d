"""Quantized networks of the zoo before any training: their size, latency and instructions are the final ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from subbyte.models.quant import quantize
from subbyte.models.zoo import create_for_scheme, get_model
from subbyte.models.zoo.registry import Size

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
    **options: Any,
) -> tuple[nn.Module, Tensor]:
    """A model of the zoo with random weights, quantized and in eval mode, and random inputs [batch, ...].

    Inputs are float32 [batch, C, H, W], or what else the model takes: series of `channels` and length `size`, or `size`
    tokens, of which `classes` is the vocabulary. `options` are the model's own. Quantizers and batch norms have seen
    such inputs. The random state of torch is left as it was. Raises UnknownNameError for the model or the scheme,
    UsageError for a size or an option that cannot be.
    """
    entry = get_model(name)
    shape = entry.shape(channels, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = entry.example(shape, classes, batch)
        model = create_for_scheme(name, scheme, shape=shape, outputs=classes, **options)
        quantize(model, scheme, example=inputs[:1]).train()
        with torch.no_grad():
            for _ in range(BATCHES):
                model(entry.example(shape, classes, batch))
    return model.eval(), inputs
