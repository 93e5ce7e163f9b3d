"""A small batch of random outputs and targets that has everything a loss may need: its first test."""

from __future__ import annotations

import torch
from torch import Tensor

from subbyte.models.losses.entry import LossEntry
from subbyte.models.losses.outputs import Outputs, Targets

SAMPLES, CLASSES, WIDTH, VIEWS = 4, 3, 5, 2


def example_for(entry: LossEntry, samples: int = SAMPLES, seed: int = 0) -> tuple[Outputs, Targets]:
    """float64 outputs and targets of what the loss needs; each class occurs twice in four samples."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, dtype=torch.float64, generator=generator)

    def network(teacher: Outputs | None = None) -> Outputs:
        return Outputs(
            random() if "scores" in entry.needs else random(CLASSES),
            prediction=random(),
            embeddings=random(VIEWS, WIDTH) if "views" in entry.needs else random(WIDTH),
            features={"first": random(WIDTH), "second": random(CLASSES)},
            teacher=teacher,
        )

    needs = {name for names in entry.alternatives() for name in names[:1]}  # a label where a soft target would do
    targets = Targets(
        torch.arange(samples) // 2 % (2 if "scores" in entry.needs else CLASSES),
        soft=random(CLASSES).softmax(-1),
        value=random(),
        ids=torch.arange(samples),
    )
    return network(network()).only(needs), targets.only(needs)
