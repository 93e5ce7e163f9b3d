"""A float model by its name: of the zoo, made for data, or of a checkpoint. For commands that look at models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import UsageError
from subbyte.models.checkpoint import Config, float_model, load_checkpoint, read_config, recipe_of
from subbyte.models.data import Data
from subbyte.models.quant import Recipe
from subbyte.models.tasks import get_task
from subbyte.models.zoo import create_for, get_model, list_models
from subbyte.models.zoo.registry import options_for_scheme

CHANNELS, OUTPUTS, TOKENS = 3, 10, 256  # of a model of the zoo for which no data is named


@dataclass(frozen=True)
class NamedModel:
    """A float module, an input of it with a batch of 1, and what is known of it."""

    title: str  # "resnet8 for [3, 32, 32], 10 outputs"
    module: nn.Module
    example: Tensor
    config: Config | None = None  # of the checkpoint

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the checkpoint."""
        return None if self.config is None else recipe_of(self.config)


def named_model(
    name: str, data: Data | None = None, scheme: str = "float", options: Mapping[str, Any] | None = None
) -> NamedModel:
    """A model of the zoo, in the form that the scheme prefers, or else that of the checkpoint in the folder `name`.

    Its tensors are initial, the same in each call. A model of the zoo is made for `data`, or for inputs of the size
    that it is meant for. Raises UsageError for a name that is neither and for data or options beside a checkpoint.
    """
    if name not in list_models():
        return _of_checkpoint(name, data is not None or bool(options))
    entry = get_model(name)
    if data is None:
        outputs = TOKENS if entry.input.dtype == "int64" else OUTPUTS
        shape = entry.shape(CHANNELS, entry.size)
    else:
        shape, outputs = data.shape, get_task(data.task, **data.task_options).outputs_for(data)
    chosen = {**options_for_scheme(name, scheme), **(options or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = create_for(name, shape=shape, outputs=outputs, dtype=None if data is None else data.dtype, **chosen)
        return NamedModel(_title(name, shape, outputs), module, entry.example(shape, outputs))


def trained_model(folder: str) -> NamedModel:
    """The float model of a checkpoint with its tensors; raises UsageError for one that is quantized."""
    found = _of_checkpoint(folder, False)
    assert found.recipe is not None
    if not found.recipe.is_float:
        raise UsageError(
            f"{folder} is quantized, by '{found.recipe.name}'; name the float checkpoint that it came from."
        )
    checkpoint = load_checkpoint(folder)
    return NamedModel(found.title, checkpoint.model, found.example, checkpoint.config)


def _of_checkpoint(folder: str, more: bool) -> NamedModel:
    if not Path(folder).is_dir():
        raise UsageError(f"'{folder}' is neither a model (`subbyte models` lists them) nor the folder of a checkpoint.")
    if more:
        raise UsageError(
            f"the checkpoint {folder} says what its model is; leave the data and options of the model out."
        )
    config = read_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = float_model(config, Path(folder))
        example = get_model(str(config.model)).example(config.shape, config.outputs)
    return NamedModel(_title(f"{folder}: {config.model}", config.shape, config.outputs), module, example, config)


def _title(name: str, shape: tuple[int, ...], outputs: int) -> str:
    return f"{name} for {list(shape)}, {outputs} outputs"
