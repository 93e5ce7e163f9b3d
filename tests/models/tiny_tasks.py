"""Tiny data for each task, and a network for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from subbyte.models import Data

TRAIN, TEST = 96, 48


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def data_of(name: str, inputs: Tensor, targets: Tensor, outputs: int, **more: Any) -> Data:
    parts = [
        TensorDataset(x, y) for x, y in zip(inputs.split([TRAIN, TEST]), targets.split([TRAIN, TEST]), strict=True)
    ]
    dtype = str(inputs.dtype).removeprefix("torch.")
    return Data("made", *parts, tuple(inputs.shape[1:]), outputs, dtype, task=name, **more)


def of_classes(name: str, **more: Any) -> Data:
    """Four classes, each around a point of its own."""
    label = torch.arange(TRAIN + TEST) % 4
    return data_of(name, random(4, 6, seed=1)[label] + 0.3 * random(len(label), 6), label, 4, **more)


def of_signs(name: str) -> Data:
    x = random(TRAIN + TEST, 6)
    return data_of(name, x, (x[:, :3] > 0).long(), 3)


def of_values(name: str) -> Data:
    x = random(TRAIN + TEST, 6)
    return data_of(name, x, x @ random(6, 2, seed=2), 2)


def of_waves(name: str, horizon: int = 2) -> Data:
    phase = torch.arange(TRAIN + TEST)[:, None] * 0.37 + torch.arange(8 + horizon) * 0.8
    wave = torch.stack([phase.sin(), phase.cos()], 1)
    return data_of(name, wave[..., :8], wave[..., 8:], 2 * horizon, task_options={"horizon": horizon})


def of_positions(name: str) -> Data:
    x = random(TRAIN + TEST, 2, 5)
    label = x.argmax(1)
    label[:, -1] = -100
    return data_of(name, x, label, 2)


def of_text(name: str) -> Data:
    tokens = (torch.arange(TRAIN + TEST)[:, None] + torch.arange(7)) * 3 % 7  # each token is followed by one alone
    return data_of(name, tokens[:, :6], tokens[:, 1:], 7, task_options={"unit": "byte"})


def of_pixels(name: str) -> Data:
    x = random(TRAIN + TEST, 2, 4, 4)
    return data_of(name, x, (x[:, 0] > x[:, 1]).long() + (x[:, 1] > 1).long(), 3)


class Moved(nn.Module):
    """Linear over the channels [N, C, L] of a series, or from tokens [N, T] to logits [N, T, V]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.movedim(1, -1))
        return y.movedim(-1, 1)


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


@dataclass(frozen=True)
class Example:
    """Tiny data of a task, and a network for it."""

    data: Callable[[str], Data]
    network: Callable[[], nn.Module]
    options: Mapping[str, Any]
    epochs: int = 4


EXAMPLES = {
    "classification": Example(of_classes, lambda: perceptron(6, 4), {}),
    "multi-label": Example(of_signs, lambda: perceptron(6, 3), {}),
    "regression": Example(of_values, lambda: perceptron(6, 2), {}),
    "forecasting": Example(of_waves, lambda: perceptron(16, 4), {}),
    "sequence-labelling": Example(
        of_positions, lambda: nn.Sequential(Moved(nn.Linear(2, 8)), nn.ReLU(), Moved(nn.Linear(8, 2))), {}
    ),
    "language-modelling": Example(of_text, lambda: nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)), {}),
    "segmentation": Example(of_pixels, lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)), {}),
    "metric-learning": Example(of_classes, lambda: perceptron(6, 5), {"width": 5}),
    "contrastive": Example(lambda name: of_classes(name, augment=noise), lambda: perceptron(6, 5), {"width": 5}),
    "few-shot": Example(of_classes, lambda: perceptron(6, 5), {"width": 5, "ways": 3, "queries": 3}),
}
