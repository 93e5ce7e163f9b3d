"""Recurrent models with quantizers that have seen data, without training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from subbyte.models.quant import get_scheme, quantize
from subbyte.models.zoo import create


def recurrent_step(scheme: str, hidden: int = 16, inputs: int = 8, **options: Any) -> nn.Module:
    """One step of the zoo's recurrent model, in eval mode: x [batch, inputs] -> logits [batch, 10]."""
    torch.manual_seed(0)
    model = create("gru", channels=1, size=(8, inputs), hidden=hidden)
    images = torch.rand(64, 1, 8, inputs)
    quantize(model, get_scheme(scheme, **options), example=images[:4])
    for _ in range(2):
        model(images)
    step: nn.Module = model.eval().get_submodule("step")
    return step
