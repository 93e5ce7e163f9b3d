"""`train`: one call from a data set to a checkpoint of a network below eight bits."""

from __future__ import annotations

import csv
import io
import json
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from subbyte.errors import (
    CheckpointError,
    FormatError,
    MissingDependencyError,
    QuantizationError,
    SubbyteError,
    UsageError,
    one_line,
)
from subbyte.files.output import check_output_folder, make_folder
from subbyte.files.plain import open_plain
from subbyte.models.checkpoint import (
    Checkpoint,
    Config,
    check_tensors,
    load_checkpoint,
    read_config,
    read_metrics,
    scheme_of,
    versions,
)
from subbyte.models.checkpoint_files import DESCRIPTION, LOG, STATE, files_of
from subbyte.models.data import Data, from_datasets, load_data
from subbyte.models.losses import Objective, Outputs
from subbyte.models.train.batches import batch_loader
from subbyte.models.train.run import Run
from subbyte.models.zoo import create, options_for_scheme

if TYPE_CHECKING:
    from subbyte.models.train.log import EpochReport

EXAMPLE_SAMPLES = 256  # images of the example that `quantize` runs the float model on


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint is, its accuracy on the test set (0 to 1), and one row of numbers for every epoch."""

    folder: Path
    accuracy: float
    history: tuple[dict[str, float], ...]

    def load(self, model: nn.Module | None = None) -> Checkpoint:
        """The checkpoint with its model; `model` as for `load_checkpoint`."""
        return load_checkpoint(self.folder, model)


def train(
    model: str | nn.Module = "resnet8",
    data: str | Data | tuple[Any, Any] = "digits",
    scheme: str = "ternary",
    epochs: int = 15,
    out: str | Path | None = None,
    *,
    loss: str = "cross-entropy",
    loss_options: Mapping[str, Any] | None = None,
    teacher: str | Path | nn.Module | None = None,
    init: str | Path | None = None,
    model_options: Mapping[str, Any] | None = None,
    scheme_options: Mapping[str, Any] | None = None,
    data_path: str | Path | None = None,
    data_options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    optimizer: str = "adamw",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    warmup: float = 0.05,
    momentum: float = 0.9,
    augment: bool = True,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    num_nodes: int = 1,
    precision: Any = "32-true",
    workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
) -> TrainResult:
    """Train a model with quantization in the loop and write a checkpoint to the folder `out`.

    `model` is a name of the zoo or any `nn.Module`, which is quantized in place; `data` a name, a `Data`, or a pair
    (train, test) of torch Datasets of (float32 image [C, H, W], label). `init` is the folder of a float checkpoint to
    start from; `teacher` the folder of a checkpoint, or a module, for a loss such as "kd" that needs one. The batch
    size counts the samples of all devices. Each epoch ends with the accuracy on the test set, a row in log.csv, a
    checkpoint, and the state that `resume=True` goes on from; the result is the model of the last epoch, not the best.
    A folder that holds a checkpoint is only written to with `resume` or `overwrite`.

    Raises `UsageError` for names and options that do not fit and for an `out` that is taken, `DataError` for data,
    `CheckpointError` for `init`, `teacher`, or a run to resume that was another.
    """
    try:
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch import Trainer
    except ImportError as error:
        raise MissingDependencyError("lightning", "train") from error
    from subbyte.models.quant import get_scheme, quantize, set_progress
    from subbyte.models.train.learner import Learner
    from subbyte.models.train.log import EpochReport
    from subbyte.models.train.progress import ProgressBar
    from subbyte.models.train.state import TrainingStateIO

    if resume and overwrite:
        raise UsageError("resume goes on with the run in out, overwrite replaces it: ask for one of them.")
    if "spawn" in strategy:
        raise UsageError(f"strategy '{strategy}' pickles the model, which torch's parametrizations refuse; use 'ddp'.")
    source = _data(data, data_path, data_options)
    try:  # an unknown name, or an option that cannot be, is found before any work
        get_scheme(scheme, **(scheme_options or {}))
    except (FormatError, QuantizationError) as error:
        raise UsageError(f"scheme '{scheme}': {error}") from error
    objective = Objective(loss, loss_options)
    read = {"logits", "label"} | (set() if teacher is None else {"teacher.logits"})
    objective.check(read)
    size = len(source.train)  # type: ignore[arg-type]
    run = Run(
        epochs=epochs,
        batch_size=batch_size if batch_size is not None else (32 if size < 10_000 else 128),
        learning_rate=learning_rate if learning_rate is not None else {"adamw": 2e-3, "sgd": 0.05}.get(optimizer, 1.0),
        weight_decay=weight_decay if weight_decay is not None else 1e-4,
        optimizer=optimizer,
        warmup=warmup,
        momentum=momentum,
        seed=seed,
        workers=workers,
        augment=augment,
    )
    start = None if init is None else _float_checkpoint(init)
    taught_by = _teacher(teacher)
    config = _config(model, source, scheme, scheme_options, model_options, start, run, loss, loss_options)
    folder = Path(out) if out is not None else Path("runs") / f"{config.model or 'custom'}-{source.name}-{scheme}"
    check_output_folder(folder, "out")
    _refuse_replacing(folder, init=init, teacher=teacher)
    state = folder / STATE
    going_on = resume and state.is_file()
    if going_on:
        _check_same_run(folder, config)
    elif not overwrite:
        _check_free(folder, resume)

    with torch.random.fork_rng(), _quiet_lightning(), _restored_interrupt():
        torch.manual_seed(seed)
        module = model if isinstance(model, nn.Module) else _create(config)
        if start is not None:
            tensors = start.model.state_dict()
            check_tensors(module, tensors, start.folder)
            module.load_state_dict(tensors)
        module.train()
        objective.check(read, model=module, teacher=taught_by)
        example = next(iter(batch_loader(source.train, min(EXAMPLE_SAMPLES, size), shuffle=True, seed=seed)))[0]
        _refuse_other_teacher(taught_by, example[:2], source)
        module = quantize(module, scheme_of(config), example=example)
        _lay_out(module, torch.channels_last)  # convolutions train about a third faster so, on CPUs too
        report = EpochReport(folder, config, progress)
        shown = [ProgressBar()] if progress else []
        try:
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                strategy=strategy,
                num_nodes=num_nodes,
                precision=precision,
                max_epochs=epochs,
                plugins=[TrainingStateIO()],
                callbacks=[report, *shown, *callbacks],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
        except (ValueError, TypeError, MisconfigurationException) as error:
            given = {"devices": devices, "strategy": strategy, "accelerator": accelerator, "nodes": num_nodes}
            asked = ", ".join(f"{name} {value}" for name, value in given.items() if value not in ("auto", 1))
            raise UsageError(f"Lightning cannot train with {asked or precision}: {error}") from error
        if trainer.is_global_zero:
            make_folder(folder)
            if not going_on:
                state.unlink(missing_ok=True)  # else a run stopped in its first epoch would resume the one it replaces
        learner = Learner(module, source, objective, run, taught_by)
        with objective.attached(module, taught_by), _blaming(state if going_on else None, report):
            if objective.has_memory:
                _prepare(objective, module, taught_by, example[:2], size)
            trainer.fit(learner, ckpt_path=str(state) if going_on else None)
        set_progress(module, 1.0)
        _lay_out(module.to("cpu").eval(), torch.contiguous_format)
    history = _read_log(folder / LOG)
    return TrainResult(folder, history[-1]["test_accuracy"], history)


# ---- the parts of a run ----


def _data(data: str | Data | tuple[Any, Any], path: str | Path | None, options: Mapping[str, Any] | None) -> Data:
    if isinstance(data, str):
        return load_data(data, path, **(options or {}))
    if isinstance(data, Data):
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise UsageError(f"data must be a name, a Data or a pair (train, test) of Datasets, got {type(data).__name__}.")
    return from_datasets(data[0], data[1], **(options or {}))


def _float_checkpoint(folder: str | Path) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    if checkpoint.config.scheme != "float":
        raise CheckpointError(
            f"{folder} is a '{checkpoint.config.scheme}' checkpoint; init needs one trained with scheme 'float'."
        )
    return checkpoint


def _teacher(teacher: str | Path | nn.Module | None) -> nn.Module | None:
    if teacher is None:
        return None
    module = teacher if isinstance(teacher, nn.Module) else load_checkpoint(teacher).model
    return module.eval().requires_grad_(False)


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


def _prepare(
    objective: Objective, model: nn.Module, teacher: nn.Module | None, images: torch.Tensor, samples: int
) -> None:
    """Make the memory of the losses for what the networks give for images; the model stays as it is."""
    with torch.no_grad():
        model.eval()
        logits = model(images)
        guide = None if teacher is None else Outputs(teacher(images))
        model.train()
    objective.prepare(Outputs(logits, teacher=guide), samples)


def _config(
    model: str | nn.Module,
    data: Data,
    scheme: str,
    scheme_options: Mapping[str, Any] | None,
    model_options: Mapping[str, Any] | None,
    start: Checkpoint | None,
    run: Run,
    loss: str,
    loss_options: Mapping[str, Any] | None,
) -> Config:
    """The description of the run. The model's form: the options given, else those of `init`, else the scheme's."""
    options: dict[str, Any] = {}
    if isinstance(model, str):
        same = start is not None and start.config.model == model
        preferred = start.config.model_options if start is not None and same else options_for_scheme(model, scheme)
        options = {**preferred, **(model_options or {})}
    elif model_options:
        raise UsageError("model_options are for a model given by name; make the module as you want it.")
    return Config(
        model=model if isinstance(model, str) else None,
        scheme=scheme,
        classes=data.classes,
        channels=data.channels,
        size=data.size,
        model_options=options,
        scheme_options=dict(scheme_options or {}),
        data=data.name,
        normalization=data.normalization,
        class_names=data.class_names,
        seed=run.seed,
        training={**asdict(run), "loss": loss, "loss_options": dict(loss_options or {})},
        versions=versions(),
    )


@contextmanager
def _blaming(state: Path | None, report: EpochReport) -> Iterator[None]:
    """Raise CheckpointError for what Lightning and torch raise while they take up a run, before it goes on."""
    try:
        yield
    except SubbyteError:
        raise
    except Exception as error:
        if state is None or report.begun:
            raise
        raise CheckpointError(
            f"{state}: cannot resume from it ({type(error).__name__}: {one_line(error)}): it is of another model or "
            "damaged; train again without resume."
        ) from error


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Store the parameters and buffers with four axes in this memory format."""
    cast(Any, module).to(memory_format=memory_format)  # torch's overloads leave it out


def _create(config: Config) -> nn.Module:
    assert config.model is not None
    return create(
        config.model, classes=config.classes, channels=config.channels, size=config.size, **config.model_options
    )


def _check_same_run(folder: Path, config: Config) -> None:
    """Raise `CheckpointError` if the run in `folder` had another model, data, scheme or seed; epochs may differ."""
    before = read_config(folder)
    for name in ("model", "model_options", "scheme", "scheme_options", "data", "seed"):
        was, now = getattr(before, name), json.loads(json.dumps(getattr(config, name)))  # a tuple is a list in JSON
        if was != now:
            raise CheckpointError(
                f"{folder / DESCRIPTION}: cannot resume, its {name} was {was!r} and now is {now!r}; "
                "ask for the same run or choose another folder."
            )


def _refuse_replacing(folder: Path, **read: str | Path | nn.Module | None) -> None:
    """Raise `UsageError` if training reads a checkpoint from the folder that it writes to."""
    for name, source in read.items():
        if isinstance(source, (str, Path)) and folder.exists() and folder.samefile(source):
            raise UsageError(f"out '{folder}' is the folder of {name}, which training would replace; name another out.")


def _check_free(folder: Path, resume: bool) -> None:
    """Raise `UsageError` if `folder` holds a checkpoint, which training anew would replace."""
    if not files_of(folder):
        return
    try:
        config, metrics = read_config(folder), read_metrics(folder)
        what = f"a {config.scheme} {config.model or 'model'}"
        what += f" (after epoch {metrics['epochs']:.0f}, test accuracy {metrics['accuracy']:.2%})" if metrics else ""
    except (CheckpointError, KeyError):
        what = "a checkpoint, damaged or unfinished"
    go_on = f"without the {STATE} to go on from" if resume else "which resume=True (--resume) goes on with"
    raise UsageError(
        f"{folder} holds {what}, {go_on}. Replace it with overwrite=True (--overwrite), or choose another out (--out)."
    )


def _read_log(file: Path) -> tuple[dict[str, float], ...]:
    with io.TextIOWrapper(open_plain(file), newline="") as stream:
        return tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(stream))


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's notes on hardware, on loaders without workers, and on torch internals that it uses."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*LeafSpec.* is deprecated.*"):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _restored_interrupt() -> Iterator[None]:
    """Lightning answers Ctrl-C by ignoring further ones and leaving the process; hand it on as KeyboardInterrupt."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
