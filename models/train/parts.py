"""What a run is made of: its data, model, starting point, teacher and loss, found and compared before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subbyte.errors import CheckpointError, FormatError, QuantizationError, UsageError, one_line
from subbyte.models.checkpoint import Checkpoint, Config, check_tensors, load_checkpoint, recipe_of, versions
from subbyte.models.data import Data, from_datasets, load_data
from subbyte.models.losses import Objective, Outputs
from subbyte.models.quant import Recipe, as_recipe, get_scheme, quantize, read_recipe, recipe_data, recipe_from_data
from subbyte.models.state import states_kept
from subbyte.models.train.batches import EpochBatches, batch_loader
from subbyte.models.train.optimizers import OPTIMIZERS
from subbyte.models.train.run import Run, changed, run_of
from subbyte.models.zoo import create, options_for_scheme

EXAMPLE_SAMPLES = 256  # images of the example that `quantize` runs the float model on
FEW_SAMPLES = 10_000  # a data set below this gets small batches
GIVEN, TAUGHT = frozenset({"logits", "label", "ids"}), frozenset({"teacher.logits"})  # what losses may read of a batch
_ORDER = ("data", "scheme", "epochs", "out")


@dataclass(frozen=True)
class Own:
    """Objects of the caller's program, in place of names."""

    model: nn.Module | None = None
    data: Data | None = None
    teacher: nn.Module | None = None


@dataclass(frozen=True)
class Parts:
    """A run with all numbers decided, and the objects that it names."""

    run: Run
    model: nn.Module | None  # the caller's own; None for one of the zoo
    data: Data
    start: Checkpoint | None
    teacher: nn.Module | None
    loss: Objective
    recipe: Recipe
    config: Config


def asked(first: Run | str | nn.Module | None, more: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Run, Own]:
    """The run and the objects that the arguments of `train` say; raises UsageError."""
    fields: dict[str, Any] = first.as_dict() if isinstance(first, Run) else {}
    if first is not None and not isinstance(first, Run):
        fields["model"] = first
    if len(more) > len(_ORDER):
        raise UsageError(f"train takes model, {', '.join(_ORDER)} by position; give the rest by name.")
    fields = changed(fields, {**dict(zip(_ORDER, more, strict=False)), **given})
    own_model = fields["model"] if isinstance(fields.get("model"), nn.Module) else None
    teacher = fields["teacher"] if isinstance(fields.get("teacher"), nn.Module) else None
    data = _own_data(fields.get("data"), fields.get("data_options"))
    if own_model is not None:
        fields["model"] = None
    if teacher is not None:
        fields["teacher"] = None
    if data is not None:
        fields |= {"data": None, "data_options": {}}
    for name in ("model_options", "scheme_options", "loss_options", "data_options", "schedule_options"):
        fields[name] = fields.get(name) or {}
    return run_of(fields), Own(own_model, data, teacher)


def gather(run: Run, own: Own) -> Parts:
    """Find all that the run names; raises UsageError, DataError, CheckpointError for what is not there or not right."""
    if run.model is None and own.model is None:
        raise UsageError("the run's model was an object of a program; give it as model, or name one of the zoo.")
    data = own.data or _named_data(run)
    recipe = _recipe(run)
    loss, taught = Objective(run.loss, run.loss_options), run.teacher is not None or own.teacher is not None
    loss.check(GIVEN | TAUGHT if taught else GIVEN)
    run = _decided(run, data, recipe)
    start = None if run.init is None else _float_checkpoint(run.init)
    teacher = own.teacher if run.teacher is None else load_checkpoint(run.teacher).model
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    return Parts(run, own.model, data, start, teacher, loss, recipe, _config(run, data, own.model, start, recipe))


def build(parts: Parts) -> nn.Module:
    """The quantized model at the start of the run, in training mode, with the memory of the losses made for it."""
    run, config, teacher = parts.run, parts.config, parts.teacher
    module = parts.model if parts.model is not None else _create(config)
    if parts.start is not None:
        tensors = parts.start.model.state_dict()
        check_tensors(module, tensors, parts.start.folder)
        module.load_state_dict(tensors)
    module.train()
    parts.loss.check(GIVEN | TAUGHT if teacher is not None else GIVEN, model=module, teacher=teacher)
    size = len(parts.data.train)  # type: ignore[arg-type]
    order = EpochBatches(size, min(EXAMPLE_SAMPLES, size), shuffle=True, seed=run.seed)
    example = next(iter(batch_loader(parts.data.train, order)))[0]
    _refuse_other_teacher(teacher, example[:2], parts.data)
    if parts.loss.has_memory:  # of the float model: a quantizer starts from the first batch that it sees
        _make_memory(parts.loss, module, teacher, example[:2], size)
    return quantize(module, parts.recipe, example=example)


def _make_memory(
    loss: Objective, model: nn.Module, teacher: nn.Module | None, images: torch.Tensor, samples: int
) -> None:
    """Make the memory of the losses for what the networks give for images; the model stays as it is."""
    with torch.no_grad(), states_kept(model), loss.attached(model, teacher):
        model.eval()
        logits = model(images)
        guide = None if teacher is None else Outputs(teacher(images))
        model.train()
        loss.prepare(Outputs(logits, teacher=guide), samples)


# ---- data ----


def _own_data(data: Any, options: Mapping[str, Any] | None) -> Data | None:
    if data is None or isinstance(data, str):
        return None
    if isinstance(data, Data):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise UsageError(f"data must be a name, a Data or a pair (train, test) of Datasets, got {type(data).__name__}.")
    return from_datasets(data[0], data[1], **(options or {}))


def _named_data(run: Run) -> Data:
    if run.data is None:
        raise UsageError("the run's data was an object of a program; give it as data, or name a data set.")
    return load_data(run.data, run.data_path, **run.data_options)


def _recipe(run: Run) -> Recipe:
    """The recipe of the run: an unknown name, or an option that cannot be, is found before any work."""
    if isinstance(run.recipe, str):
        return read_recipe(run.recipe)
    if run.recipe is not None:
        return recipe_from_data(run.recipe)
    try:
        return as_recipe(get_scheme(str(run.scheme), **run.scheme_options))
    except (FormatError, QuantizationError) as error:
        raise UsageError(f"scheme '{run.scheme}': {error}") from error


def _decided(run: Run, data: Data, recipe: Recipe) -> Run:
    """The run with its rules, its folder, and the numbers that depend on the data and on the optimizer."""
    few = len(data.train) < FEW_SAMPLES  # type: ignore[arg-type]
    named = f"{run.model or 'custom'}-{data.name}-{recipe.name}"
    return replace(
        run,
        batch_size=run.batch_size if run.batch_size is not None else (32 if few else 128),
        learning_rate=run.learning_rate if run.learning_rate is not None else OPTIMIZERS[run.optimizer].learning_rate,
        out=run.out if run.out is not None else str(Path("runs") / named),
        recipe=None if run.recipe is None else recipe_data(recipe),
    )


# ---- models ----


def _float_checkpoint(folder: str) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    if not recipe_of(checkpoint.config).is_float:
        raise CheckpointError(
            f"{folder} is a '{checkpoint.config.scheme}' checkpoint; init needs one trained with scheme 'float'."
        )
    return checkpoint


def _refuse_other_teacher(teacher: nn.Module | None, images: torch.Tensor, data: Data) -> None:
    """Raise UsageError unless the teacher gives logits [N, classes] of the data's images."""
    if teacher is None:
        return
    try:
        with torch.no_grad():
            given = teacher(images)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"the teacher does not take images {list(images.shape[1:])} of '{data.name}' ({one_line(error)}); name one "
            "that was trained on such data."
        ) from error
    wanted = [len(images), data.classes]
    found = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
    if found != wanted:
        raise UsageError(f"the teacher gives {found} for {len(images)} images, expected logits {wanted}; name another.")


def _config(run: Run, data: Data, own: nn.Module | None, start: Checkpoint | None, recipe: Recipe) -> Config:
    """The description of the run. The model's form: the options given, else those of `init`, else what the scheme of
    the rest of the layers prefers."""
    options: dict[str, Any] = {}
    name = None if own is not None else run.model
    if name is not None:
        same = start is not None and start.config.model == name
        preferred = (
            start.config.model_options if start is not None and same else options_for_scheme(name, recipe.main.name)
        )
        options = {**preferred, **run.model_options}
    elif run.model_options:
        raise UsageError("model_options are for a model given by name; make the module as you want it.")
    return Config(
        model=name,
        scheme=recipe.name,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        model_options=options,
        scheme_options=run.scheme_options,
        recipe=tuple(recipe_data(recipe)) if run.recipe is not None else (),
        data=data.name,
        normalization=data.normalization,
        class_names=data.class_names,
        seed=run.seed,
        training=run.as_dict(),
        versions=versions(),
    )


def _create(config: Config) -> nn.Module:
    assert config.model is not None
    return create(
        config.model, classes=config.classes, channels=config.channels, size=config.size, **config.model_options
    )
