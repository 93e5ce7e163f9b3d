"""What a run is made of: its data, model, starting point, teacher and loss, found and compared before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from subbyte.errors import CheckpointError, FormatError, QuantizationError, UsageError, one_line
from subbyte.models.checkpoint import Checkpoint, Config, check_tensors, load_checkpoint, recipe_of, versions
from subbyte.models.data import Data, from_datasets, load_data
from subbyte.models.losses import Objective
from subbyte.models.quant import Recipe, as_recipe, get_scheme, quantize, read_recipe, recipe_data, recipe_from_data
from subbyte.models.state import states_kept
from subbyte.models.tasks import Batch, Task, get_task
from subbyte.models.train.batches import EpochBatches, batch_loader, training_order
from subbyte.models.train.held_out import SHARE, hold_out
from subbyte.models.train.optimizers import OPTIMIZERS
from subbyte.models.train.run import Run, changed, run_of
from subbyte.models.zoo import create_for, options_for_scheme

EXAMPLE_SAMPLES = 256  # samples of the example that `quantize` runs the float model on
FEW_SAMPLES = 10_000  # a data set below this gets small batches
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
    task: Task
    loss: Objective
    recipe: Recipe
    config: Config
    held_out: Dataset[Any] | None  # scored after each epoch in place of the test set

    @property
    def given(self) -> frozenset[str]:
        """What losses may read, of `losses.outputs.NEEDS`."""
        return _given(self.task, self.teacher is not None)


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
    for name in ("model_options", "scheme_options", "loss_options", "task_options", "data_options", "schedule_options"):
        fields[name] = fields.get(name) or {}
    return run_of(fields), Own(own_model, data, teacher)


def gather(run: Run, own: Own) -> Parts:
    """Find all that the run names; raises UsageError, DataError, CheckpointError for what is not there or not right."""
    if run.model is None and own.model is None:
        raise UsageError("the run's model was an object of a program; give it as model, or name one of the zoo.")
    data = own.data or _named_data(run)
    recipe, task = _recipe(run), _task(run, data)
    run, held_out = _decided(run, data, task, recipe), None
    assert run.loss is not None
    loss = Objective(run.loss, run.loss_options)
    loss.check(_given(task, run.teacher is not None or own.teacher is not None))
    task.check(data)
    if run.held_out is not None:
        data, held_out = hold_out(data, run.held_out, run.seed)
    start = None if run.init is None else _float_checkpoint(run.init)
    teacher = own.teacher if run.teacher is None else load_checkpoint(run.teacher).model
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    config = _config(run, data, task, own.model, start, recipe)
    return Parts(run, own.model, data, start, teacher, task, loss, recipe, config, held_out)


def build(parts: Parts) -> nn.Module:
    """The quantized model at the start of the run, in training mode, with the memory of the losses made for it."""
    run, config, teacher, data = parts.run, parts.config, parts.teacher, parts.data
    module = parts.model if parts.model is not None else _create(config)
    if parts.start is not None:
        tensors = parts.start.model.state_dict()
        check_tensors(module, tensors, parts.start.folder)
        module.load_state_dict(tensors)
    module.train()
    parts.loss.check(parts.given, model=module, teacher=teacher)
    size = len(data.train)  # type: ignore[arg-type]
    order = EpochBatches(size, min(EXAMPLE_SAMPLES, size), shuffle=True, seed=run.seed)
    example = next(iter(batch_loader(data.train, order)))
    _try(parts, module, Batch(example[0][:2], example[1][:2]))
    return quantize(module, parts.recipe, example=example[0])


def _try(parts: Parts, model: nn.Module, first: Batch) -> None:
    """Run the float model and the teacher on a first batch; make the memory of the losses for what they give.

    The model stays as it is: a quantizer starts from the first batch that it sees. Raises UsageError for a network that
    does not take the inputs or gives none of the outputs of the task.
    """
    task, data, loss, teacher = parts.task, parts.data, parts.loss, parts.teacher
    if task.episode is not None:
        assert parts.run.batch_size is not None
        order = training_order(data.train, task, parts.run.batch_size, seed=parts.run.seed)
        first = Batch(*next(iter(batch_loader(data.train, order))))
    rows = first.inputs.repeat_interleave(task.views, dim=0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), states_kept(model), loss.attached(model, teacher):
        model.eval()
        result = _result("model", model, rows, parts)
        outputs = task.outputs(result, first)
        if teacher is not None:
            guide = _result("teacher", teacher, rows, parts)
            if guide.shape != result.shape:
                raise _other_outputs("teacher", guide, list(result.shape), task)
            outputs = outputs.replaced(teacher=task.outputs(guide, first))
        model.train()
        if loss.has_memory:
            loss.prepare(outputs, len(data.train))  # type: ignore[arg-type]


def _result(who: str, network: nn.Module, rows: Tensor, parts: Parts) -> Tensor:
    """What a network gives for rows; raises UsageError unless that is what the task learns from."""
    task, data = parts.task, parts.data
    try:
        given = one_tensor(network(rows))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"the {who} does not take inputs {list(rows.shape[1:])} of '{data.name}' ({one_line(error)}); name one for "
            "such data."
        ) from error
    if not task.fits(tuple(given.shape[1:]), data) or len(given) != len(rows):
        raise _other_outputs(who, given, [len(rows), *task.output_shape(data)], task)
    return given


def _other_outputs(who: str, given: Tensor, wanted: list[int], task: Task) -> UsageError:
    return UsageError(
        f"the {who} gives {list(given.shape)} for {wanted[0]} inputs, expected {wanted} for task '{task.name}'; name "
        "another."
    )


def one_tensor(output: object) -> Tensor:
    """What a model gave, where that is one tensor; raises UsageError."""
    if isinstance(output, Tensor):
        return output
    raise UsageError(
        f"the model's forward returns a {type(output).__name__}, train learns from one tensor, such as logits [N, "
        "classes], alone: train it with a loop of your own around quantize(), then export the model"
    )


# ---- the task ----


def _task(run: Run, data: Data) -> Task:
    """The task that the run names, else that of the data; each with its own options."""
    if run.task is None or run.task == data.task:
        return get_task(data.task, **{**data.task_options, **run.task_options})
    return get_task(run.task, **run.task_options)


def _given(task: Task, taught: bool) -> frozenset[str]:
    """What losses may read, of `losses.outputs.NEEDS`; of a teacher what it gives as the network does."""
    if not taught:
        return task.gives
    return task.gives | {"teacher"} | {f"teacher.{name}" for name in task.gives & {"logits", "embeddings"}}


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


def _decided(run: Run, data: Data, task: Task, recipe: Recipe) -> Run:
    """The run with its task, rules and folder, and the numbers that depend on the data and on the optimizer."""
    named = f"{run.model or 'custom'}-{data.name}-{recipe.name}"
    return replace(
        run,
        task=task.name,
        task_options=task.options(),
        loss=run.loss if run.loss is not None else task.loss,
        batch_size=_batch_size(run, data, task),
        learning_rate=run.learning_rate if run.learning_rate is not None else OPTIMIZERS[run.optimizer].learning_rate,
        out=run.out if run.out is not None else str(Path("runs") / named),
        recipe=None if run.recipe is None else recipe_data(recipe),
        held_out=SHARE if run.held_out is None and (run.keep == "best" or run.patience is not None) else run.held_out,
    )


def _batch_size(run: Run, data: Data, task: Task) -> int:
    if task.episode is not None:
        size = task.episode.classes * task.episode.per_class
        if run.batch_size not in (None, size):
            raise UsageError(f"an episode of '{task.name}' has {size} samples; leave batch_size out.")
        return size
    few = len(data.train) < FEW_SAMPLES  # type: ignore[arg-type]
    return run.batch_size if run.batch_size is not None else (32 if few else 128)


# ---- models ----


def _float_checkpoint(folder: str) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    if not recipe_of(checkpoint.config).is_float:
        raise CheckpointError(
            f"{folder} is a '{checkpoint.config.scheme}' checkpoint; init needs one trained with scheme 'float'."
        )
    return checkpoint


def _config(
    run: Run, data: Data, task: Task, own: nn.Module | None, start: Checkpoint | None, recipe: Recipe
) -> Config:
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
        shape=data.shape,
        outputs=task.outputs_for(data),
        model_options=options,
        scheme_options=run.scheme_options,
        recipe=tuple(recipe_data(recipe)) if run.recipe is not None else (),
        data=data.name,
        normalization=data.normalization,
        class_names=data.class_names,
        seed=run.seed,
        training=run.as_dict(),
        versions=versions(),
        input_dtype=data.dtype,
        task=task.name,
        task_options=task.options(),
        preprocessing=data.preprocessing,
    )


def _create(config: Config) -> nn.Module:
    assert config.model is not None
    return create_for(
        config.model, shape=config.shape, outputs=config.outputs, dtype=config.input_dtype, **config.model_options
    )
