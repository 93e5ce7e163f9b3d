"""Small float networks for digits, trained in a second by plain torch, for tests of what comes after training."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from subbyte.models import create, load_data
from subbyte.models.data import Data


@cache
def digits() -> Data:
    return load_data("digits")


def inputs_and_labels(test: bool = False) -> tuple[Tensor, Tensor]:
    """All of a part of digits: images float32 [N, 1, 8, 8] and labels int64 [N]."""
    part = digits().test if test else digits().train
    images, labels = part.batch(slice(None))  # type: ignore[attr-defined]
    return images, labels


def trained(seed: int, model: str = "mlp", steps: int = 60, **options: object) -> nn.Module:
    """A float network of the zoo in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = create(model, classes=10, channels=1, size=8, **options)
        images, labels = inputs_and_labels()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(steps):
            batch = torch.randperm(len(images))[:256]
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def accuracy(net: nn.Module) -> float:
    """Of the test set of digits, 0 to 1."""
    images, labels = inputs_and_labels(test=True)
    with torch.no_grad():
        return int((net(images).argmax(-1) == labels).sum()) / len(labels)
