"""Small checkpoints for the tests of them: a description, a model that is not fresh, tensors that are changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from subbyte.models import Config, Normalization, create_for_scheme, quantize
from subbyte.models.checkpoint import recipe_of, weights_file
from subbyte.models.checkpoint_files import DESCRIPTION
from subbyte.models.zoo import options_for_scheme


def config_for(scheme: str, name: str = "mlp", **changes: Any) -> Config:
    options = {"hidden": [12, 9]} if name == "mlp" else options_for_scheme(name, scheme)
    base = Config(
        model=name,
        scheme=scheme,
        shape=(1, 8, 8),
        outputs=10,
        model_options=options,
        data="digits",
        normalization=Normalization(16.0, (0.3,), (0.4,)),
        class_names=("a", "b"),
        seed=3,
    )
    return dataclasses.replace(base, **changes)


def of_an_image(description: dict[str, Any]) -> dict[str, Any]:
    """A description as versions 1 to 4 had it."""
    new = ("shape", "outputs", "input_dtype", "task", "task_options")
    config = {name: value for name, value in description["config"].items() if name not in new}
    channels, *size = description["config"]["shape"]
    config |= {"classes": description["config"]["outputs"], "channels": channels, "size": size}
    return {**description, "config": config}


def trained_a_little(config: Config) -> nn.Module:
    """A quantized model whose parameters and statistics are not those of a fresh one."""
    torch.manual_seed(1)
    assert config.model is not None
    options = {"classes": 10, "channels": 1, "size": (8, 8), **config.model_options}
    model = create_for_scheme(config.model, config.scheme, **options).train()
    model = quantize(model, recipe_of(config), example=torch.randn(16, 1, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.arange(16) % 10).backward()
        optimizer.step()
    return model.eval()


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the tensors, and the hash in the description."""
    save_file(tensors, weights_file(folder))
    description = json.loads((folder / DESCRIPTION).read_text())
    description["weights"]["sha256"] = hashlib.sha256(weights_file(folder).read_bytes()).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(description))
