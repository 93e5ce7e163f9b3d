"""A multi-layer perceptron: the smallest model that uses every part of the pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from subbyte.models.zoo.registry import Size, check_counts, register_model


@register_model("mlp", summary="multi-layer perceptron, two hidden layers of 256", size=(8, 8), flattens=True)
def mlp(*, classes: int, channels: int, size: Size, hidden: Sequence[int] = (256, 256)) -> nn.Module:
    """Flatten, then Linear and ReLU for each width in `hidden`, then Linear to `classes`."""
    for width in hidden:
        check_counts("mlp", hidden=width)
    widths = [channels * size[0] * size[1], *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
