"""Checkpoints: `checkpoint.json` with what is needed to make the model again, and the file of tensors that it names.

A checkpoint never runs code: no pickle, and a model is only ever made by name from the zoo, or handed in by the caller.
It takes no memory before it is known to be right: shapes are compared first, those of the file's header with those of
the float model on torch's meta device.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from subbyte import __version__
from subbyte.errors import CheckpointError, DataError, QuantizationError, SubbyteError, UsageError
from subbyte.files import limits
from subbyte.files.output import make_folder
from subbyte.models.checkpoint_files import (
    DESCRIPTION,
    check_bools,
    commit,
    is_weights_name,
    open_file,
    parse,
    read_description,
    read_header,
    weights_name,
)
from subbyte.models.data import INPUT_TYPES, Normalization
from subbyte.models.on_meta import refuse_other_shapes
from subbyte.models.options import mistyped
from subbyte.models.quant.state_dict_versions import upgraded
from subbyte.models.zoo import create_for, get_model

if TYPE_CHECKING:
    from subbyte.models.quant import Recipe

# 1 held steps instead of their change from the start; 1 and 2 named all tensors alike; 1 to 3 had no `recipe`; 1 to 4
# had `classes`, `channels` and `size` of an image, and no task.
VERSION = 5


@dataclass(frozen=True)
class Config:
    """Everything about a trained model but its tensors."""

    model: str | None  # a name of the zoo; None for a module of the caller's own
    scheme: str  # the name of the recipe: a scheme's where it is one
    shape: tuple[int, ...]  # of one input without the batch, as `Data` has it
    outputs: int  # classes, labels, values, tokens, or the length of an embedding
    model_options: Mapping[str, Any] = field(default_factory=dict)
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Sequence[Mapping[str, Any]] = ()  # its rules as plain data; without any it is that of the scheme
    data: str = "custom"
    normalization: Normalization | None = None
    class_names: tuple[str, ...] = ()
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)  # epochs, loss, optimizer: how it was trained
    versions: Mapping[str, str] = field(default_factory=dict)
    input_dtype: str = "float32"  # one of `data.INPUT_TYPES`
    task: str = "classification"
    task_options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # as `Data` has it

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, *shape): a batch of one input."""
        return (1, *self.shape)

    @property
    def data_options(self) -> dict[str, Any]:
        """The options of the data set that it was trained on."""
        given = self.training.get("data_options")
        return dict(given) if isinstance(given, Mapping) else {}

    def example(self, device: str = "cpu") -> Tensor:
        """A batch of one input, all zeros; a token of 0 is in every vocabulary."""
        return torch.zeros(self.input_shape, dtype=getattr(torch, self.input_dtype), device=device)


@dataclass(frozen=True)
class Checkpoint:
    """A model as trained, quantized and in eval mode; its description; what it reached; where it came from."""

    model: nn.Module
    config: Config
    metrics: dict[str, float]
    folder: Path
    sha256: str  # of the file of tensors


@dataclass(frozen=True)
class Description:
    """What `checkpoint.json` says."""

    config: Config
    metrics: dict[str, float]
    weights: str  # name of the file of tensors
    sha256: str


def save_checkpoint(
    folder: str | Path, model: nn.Module, config: Config, metrics: Mapping[str, float] | None = None
) -> Path:
    """Write `model` (quantized as `config` says) to `folder`; returns the folder.

    At any moment the folder holds this checkpoint whole, or the one before. Raises WriteError for a full or read-only
    disk and the like.
    """
    target = Path(folder)
    make_folder(target)
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    weights = save_tensors(tensors)
    sha256 = hashlib.sha256(weights).hexdigest()
    name = weights_name(sha256)
    description = {
        "kind": "subbyte checkpoint",
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "metrics": dict(metrics or {}),
        "weights": {"file": name, "sha256": sha256},
    }
    commit(target, name, weights, (json.dumps(description, indent=2) + "\n").encode())
    return target


def load_checkpoint(folder: str | Path, model: nn.Module | None = None) -> Checkpoint:
    """Make the model that `folder` describes, quantize it, and fill in its tensors; on the CPU, in eval mode.

    `model` is the float module for a checkpoint of a module that is not of the zoo; it is quantized in place. Raises
    `CheckpointError` for files that are missing, damaged, or of another model, `UsageError` for a file instead of a
    folder, `UnknownNameError` for an unknown model or scheme.
    """
    source = Path(folder)
    description, file = _opened(source)
    with file:
        path = source / description.weights
        header = read_header(file, path)
        if model is None:
            config = description.config
            refuse_other_shapes(lambda: float_model(config, source), config.example("meta"), header, path)
        made = build_model(description.config, model, source)
        check_tensors(made, upgraded(made, header), path)
        file.seek(0)
        weights = file.read()
    actual_hash = hashlib.sha256(weights).hexdigest()
    if actual_hash != description.sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is {actual_hash[:12]}..., {DESCRIPTION} says {description.sha256[:12]}...; "
            "the two files are not of one save, or one is damaged. Copy both again."
        )
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error}); copy or train it again.") from error
    check_bools(tensors, path)
    made.load_state_dict(upgraded(made, tensors))
    return Checkpoint(made.eval(), description.config, description.metrics, source, actual_hash)


def weights_file(folder: str | Path) -> Path:
    """The file of tensors of the checkpoint in `folder`; raises `CheckpointError`."""
    return Path(folder) / _read_description(Path(folder)).weights


def read_config(folder: str | Path) -> Config:
    """The description of the checkpoint in `folder`, without its tensors; raises `CheckpointError`."""
    return _read_description(Path(folder)).config


def read_metrics(folder: str | Path) -> dict[str, float]:
    """What the checkpoint in `folder` reached, without its tensors; raises `CheckpointError`."""
    return _read_description(Path(folder)).metrics


def build_model(config: Config, model: nn.Module | None = None, source: Path | None = None) -> nn.Module:
    """The quantized model of `config` with tensors that are not yet filled in."""
    from subbyte.models.quant import quantize

    if model is None:
        model = float_model(config, source)
    if config.scheme == "float" and not config.scheme_options and not config.recipe:
        return model
    recipe = recipe_of(config, source)
    # The example only gives quantizer state its shapes; every value is then replaced by the file's.
    return quantize(model, recipe, example=config.example())


def float_model(config: Config, source: Path | None = None) -> nn.Module:
    """The model of `config` before it was quantized, with initial tensors.

    Raises CheckpointError for a module that is not of the zoo and options that it cannot be made from.
    """
    place = f"{source}: " if source else ""
    if config.model is None:
        raise CheckpointError(
            f"{place}the model is not of the zoo, and only your program can make it: pass it to "
            "load_checkpoint(folder, model=MyModel()), whose result `subbyte.export` and `subbyte.check` take."
        )
    wrong = mistyped(get_model(config.model).build, config.model_options)
    if wrong:
        raise CheckpointError(f"{place}model '{config.model}' cannot be made from its options: {wrong}.")
    try:
        return create_for(
            config.model,
            shape=config.shape,
            outputs=config.outputs,
            dtype=config.input_dtype,
            **config.model_options,
        )
    except UsageError:
        raise  # an unknown name or option, inputs of another kind: the message says which
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{place}model '{config.model}' cannot be made from its options: {error}") from error


def recipe_of(config: Config, source: Path | None = None) -> Recipe:
    """The recipe of `config`: its rules, else that of its scheme.

    Raises CheckpointError for rules that are none, UnknownNameError or QuantizationError for the scheme.
    """
    from subbyte.models.quant import as_recipe, get_scheme, recipe_from_data

    if not config.recipe:
        return as_recipe(get_scheme(config.scheme, **config.scheme_options))
    try:
        return dataclasses.replace(recipe_from_data(config.recipe), name=config.scheme, source=str(source or ""))
    except QuantizationError as error:
        raise CheckpointError(f"{f'{source}: ' if source else ''}the recipe of the checkpoint: {error}") from error


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise `CheckpointError`, naming the tensor, unless `tensors` are exactly those of `model`."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{file}: tensor '{missing[0]}' is missing ({len(missing)} in all); it is a checkpoint of another model."
        )
    surplus = [name for name in tensors if name not in expected]
    if surplus:
        raise CheckpointError(
            f"{file}: tensor '{surplus[0]}' is not in the model ({len(surplus)} in all); it is a checkpoint of another."
        )
    for name, tensor in expected.items():
        got = tensors[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            raise CheckpointError(
                f"{file}: tensor '{name}' is {got.dtype} {list(got.shape)}, expected {tensor.dtype} "
                f"{list(tensor.shape)}; it is a checkpoint of another model."
            )


def versions() -> dict[str, str]:
    """Versions of subbyte and of what made the checkpoint."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"subbyte": __version__}  # of the code that runs: the metadata of an editable installation may be older
    for package in ("torch", "lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _opened(source: Path) -> tuple[Description, BinaryIO]:
    """The description and the tensors that it names, open: a save that comes now deletes a name, not what is read."""
    description = _read_description(source)
    while True:
        try:
            return description, open_file(source, description.weights)
        except CheckpointError:
            before, description = description, _read_description(source)
            if before == description:
                raise


def _read_description(folder: Path) -> Description:
    file = folder / DESCRIPTION
    raw = parse(read_description(folder), file)
    if not isinstance(raw, dict) or raw.get("kind") != "subbyte checkpoint":
        raise CheckpointError(f"{file}: not the description of a subbyte checkpoint.")
    if raw.get("version") not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{file}: version {raw.get('version')}, this subbyte reads 1 to {VERSION}; use its own version."
        )
    config = _read_config(_upgraded_config(raw, file), file)
    metrics = _field(raw, "metrics", dict, file)
    weights = _field(raw, "weights", dict, file)
    name = _field(weights, "file", str, file)
    if not is_weights_name(name):
        raise CheckpointError(f"{file}: its tensors are in {name[:80]!r}, no file that a checkpoint writes.")
    try:
        numbers = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: metrics are malformed ({error}).") from error
    return Description(config, numbers, name, _field(weights, "sha256", str, file))


def _upgraded_config(raw: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields of the configuration as this version names them."""
    config: dict[str, Any] = _field(raw, "config", dict, file)
    if raw["version"] > 4:
        return config
    size = _field(config, "size", list, file)
    shape = [_field(config, "channels", int, file), *size]
    rest = {name: value for name, value in config.items() if name not in ("classes", "channels", "size")}
    return {**rest, "shape": shape, "outputs": _field(config, "classes", int, file)}


def _read_config(raw: dict[str, Any], file: Path) -> Config:
    unknown = sorted(set(raw) - {f.name for f in dataclasses.fields(Config)})
    if unknown:
        raise CheckpointError(f"{file}: config has an unknown field '{unknown[0]}'.")
    normalization = raw.get("normalization")
    try:
        if normalization is not None:
            normalization = Normalization(
                float(normalization["largest"]),
                tuple(float(v) for v in normalization["mean"]),
                tuple(float(v) for v in normalization["deviation"]),
                int(normalization.get("axes", 2)),
            )
        config = Config(
            model=None if raw.get("model") is None else _field(raw, "model", str, file),
            scheme=_field(raw, "scheme", str, file),
            shape=tuple(int(size) for size in _field(raw, "shape", list, file)),
            outputs=_field(raw, "outputs", int, file),
            model_options=_field(raw, "model_options", dict, file),
            scheme_options=_field(raw, "scheme_options", dict, file),
            recipe=tuple(_field(raw, "recipe", list, file)) if "recipe" in raw else (),
            data=_field(raw, "data", str, file),
            normalization=normalization,
            class_names=tuple(str(name) for name in _field(raw, "class_names", list, file)),
            seed=_field(raw, "seed", int, file),
            training=_field(raw, "training", dict, file),
            versions=_field(raw, "versions", dict, file),
            **{name: _field(raw, name, kind, file) for name, kind in _OF_TASKS.items() if name in raw},
        )
    except DataError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except SubbyteError:
        raise
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{file}: config is malformed ({type(error).__name__}: {error}).") from error
    _refuse_sizes(config, file)
    return config


_OF_TASKS = {
    "input_dtype": str,
    "task": str,
    "task_options": dict,
    "preprocessing": dict,
}  # fields that the first versions had not


def _refuse_sizes(config: Config, file: Path) -> None:
    for name, number in (("outputs", config.outputs), ("shape", min(config.shape, default=0))):
        if number < 1:
            raise CheckpointError(f"{file}: '{name}' is {number}, expected at least 1.")
    if config.input_dtype not in INPUT_TYPES:
        raise CheckpointError(
            f"{file}: 'input_dtype' is '{config.input_dtype[:80]}', expected one of {', '.join(INPUT_TYPES)}."
        )
    values = math.prod(config.input_shape)
    if values > limits.IMAGE_VALUES:
        raise CheckpointError(f"{file}: an input has {values} values, at most {limits.IMAGE_VALUES} are accepted.")
    for name in ("mean", "deviation") if config.normalization else ():
        length = len(getattr(config.normalization, name))
        if length not in (1, config.shape[0]):
            raise CheckpointError(
                f"{file}: the normalisation has {length} values of {name}, expected 1 or {config.shape[0]}."
            )


def _field(raw: Mapping[str, Any], name: str, kind: Callable[..., Any], file: Path) -> Any:
    value = raw.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
        wanted = getattr(kind, "__name__", str(kind))
        raise CheckpointError(f"{file}: '{name}' is {type(value).__name__}, expected {wanted}.")
    return value
