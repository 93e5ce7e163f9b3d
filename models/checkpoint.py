"""Checkpoints: `model.safetensors` with the tensors, `checkpoint.json` with what is needed to make the model again.

A checkpoint never runs code: no pickle, and a model is only ever made by name from the zoo, or handed in by the caller.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from subbyte.errors import CheckpointError, SubbyteError, UsageError
from subbyte.file_kinds import CHECKPOINT, kind_of
from subbyte.models.data import Normalization
from subbyte.models.options import mistyped
from subbyte.models.quant.state import upgraded
from subbyte.models.zoo import create, get_model
from subbyte.plain_file import open_plain

VERSION = 2  # 1 held steps instead of their change from the start; it is read, too
WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"
LARGEST_DESCRIPTION = 16 << 20  # bytes


@dataclass(frozen=True)
class Config:
    """Everything about a trained model but its tensors."""

    model: str | None  # a name of the zoo; None for a module of the caller's own
    scheme: str
    classes: int
    channels: int
    size: tuple[int, int]  # height, width
    model_options: Mapping[str, Any] = field(default_factory=dict)
    scheme_options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "custom"
    normalization: Normalization | None = None
    class_names: tuple[str, ...] = ()
    seed: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)  # epochs, loss, optimizer: how it was trained
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(1, channels, height, width): the input of one image."""
        return (1, self.channels, *self.size)


@dataclass(frozen=True)
class Checkpoint:
    """A model as trained, quantized and in eval mode; its description; what it reached; where it came from."""

    model: nn.Module
    config: Config
    metrics: dict[str, float]
    folder: Path
    sha256: str  # of model.safetensors


def save_checkpoint(
    folder: str | Path, model: nn.Module, config: Config, metrics: Mapping[str, float] | None = None
) -> Path:
    """Write `model` (quantized as `config` says) to `folder`, each file atomically; returns the folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    weights = save_tensors(tensors)
    description = {
        "kind": "subbyte checkpoint",
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "metrics": dict(metrics or {}),
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
    }
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(target / WEIGHTS, weights)
    write_atomically(target / DESCRIPTION, text.encode())
    return target


def load_checkpoint(folder: str | Path, model: nn.Module | None = None) -> Checkpoint:
    """Make the model that `folder` describes, quantize it, and fill in its tensors; on the CPU, in eval mode.

    `model` is the float module for a checkpoint of a module that is not of the zoo; it is quantized in place. Raises
    `CheckpointError` for files that are missing, damaged, or of another model, `UsageError` for a file instead of a
    folder, `UnknownNameError` for an unknown model or scheme.
    """
    source = Path(folder)
    config, metrics, expected_hash = _read_description(source)
    weights = _read(source, WEIGHTS)
    actual_hash = hashlib.sha256(weights).hexdigest()
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source / WEIGHTS}: damaged or truncated ({error}); copy or train it again.") from error
    if actual_hash != expected_hash:
        raise CheckpointError(
            f"{source / WEIGHTS}: its SHA-256 is {actual_hash[:12]}..., {DESCRIPTION} says {expected_hash[:12]}...; "
            "the two files are not of one save, or one is damaged. Copy both again."
        )
    made = build_model(config, model, source)
    tensors = upgraded(made, tensors)
    check_tensors(made, tensors, source / WEIGHTS)
    made.load_state_dict(tensors)
    return Checkpoint(made.eval(), config, metrics, source, actual_hash)


def read_config(folder: str | Path) -> Config:
    """The description of the checkpoint in `folder`, without its tensors; raises `CheckpointError`."""
    return _read_description(Path(folder))[0]


def read_metrics(folder: str | Path) -> dict[str, float]:
    """What the checkpoint in `folder` reached, without its tensors; raises `CheckpointError`."""
    return _read_description(Path(folder))[1]


def build_model(config: Config, model: nn.Module | None = None, source: Path | None = None) -> nn.Module:
    """The quantized model of `config` with tensors that are not yet filled in."""
    from subbyte.models.quant import quantize

    place = f"{source}: " if source else ""
    if model is None and config.model is None:
        raise CheckpointError(f"{place}the model is not of the zoo; pass it: load_checkpoint(folder, model=MyModel()).")
    if model is None:
        assert config.model is not None
        wrong = mistyped(get_model(config.model).build, config.model_options)
        if wrong:
            raise CheckpointError(f"{place}model '{config.model}' cannot be made from its options: {wrong}.")
        try:
            model = create(
                config.model,
                classes=config.classes,
                channels=config.channels,
                size=config.size,
                **config.model_options,
            )
        except UsageError:
            raise  # an unknown name or option: the message says which
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{place}model '{config.model}' cannot be made from its options: {error}") from error
    if config.scheme == "float" and not config.scheme_options:
        return model
    # The example only gives quantizer state its shapes; every value is then replaced by the file's.
    return quantize(model, scheme_of(config), example=torch.zeros(config.input_shape))


def scheme_of(config: Config) -> Any:
    """What `quantize` takes for the scheme of `config`: its name, or the scheme with its options."""
    if not config.scheme_options:
        return config.scheme
    from subbyte.models.quant import get_scheme

    return get_scheme(config.scheme, **config.scheme_options)


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

    found = {}
    for package in ("subbyte", "torch", "lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_atomically(file: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename: a reader sees the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _read(folder: Path, name: str) -> bytes:
    try:
        with open_plain(folder / name) as file:
            return file.read()
    except OSError as error:
        kind = kind_of(folder)
        if kind is not None and kind != CHECKPOINT:
            wrong = UsageError if folder.is_file() else CheckpointError
            raise wrong(
                f"{folder} is not a checkpoint, it is {kind}; expected the folder that `subbyte train --out` made."
            ) from error
        raise CheckpointError(f"{folder} is not a checkpoint: cannot read {name} ({error.strerror}).") from error


def _read_description(folder: Path) -> tuple[Config, dict[str, float], str]:
    file = folder / DESCRIPTION
    content = _read(folder, DESCRIPTION)
    if len(content) > LARGEST_DESCRIPTION:
        raise CheckpointError(f"{file}: {len(content)} bytes, at most {LARGEST_DESCRIPTION} are accepted.")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged JSON ({error}); copy or train it again.") from error
    if not isinstance(raw, dict) or raw.get("kind") != "subbyte checkpoint":
        raise CheckpointError(f"{file}: not the description of a subbyte checkpoint.")
    if raw.get("version") not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{file}: version {raw.get('version')}, this subbyte reads 1 to {VERSION}; use its own version."
        )
    config = _read_config(_field(raw, "config", dict, file), file)
    metrics = _field(raw, "metrics", dict, file)
    weights = _field(raw, "weights", dict, file)
    try:
        numbers = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: metrics are malformed ({error}).") from error
    return config, numbers, _field(weights, "sha256", str, file)


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
            )
        height, width = _field(raw, "size", list, file)
        config = Config(
            model=None if raw.get("model") is None else _field(raw, "model", str, file),
            scheme=_field(raw, "scheme", str, file),
            classes=_field(raw, "classes", int, file),
            channels=_field(raw, "channels", int, file),
            size=(int(height), int(width)),
            model_options=_field(raw, "model_options", dict, file),
            scheme_options=_field(raw, "scheme_options", dict, file),
            data=_field(raw, "data", str, file),
            normalization=normalization,
            class_names=tuple(str(name) for name in _field(raw, "class_names", list, file)),
            seed=_field(raw, "seed", int, file),
            training=_field(raw, "training", dict, file),
            versions=_field(raw, "versions", dict, file),
        )
    except SubbyteError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file}: config is malformed ({type(error).__name__}: {error}).") from error
    return config


def _field(raw: Mapping[str, Any], name: str, kind: Callable[..., Any], file: Path) -> Any:
    value = raw.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
        wanted = getattr(kind, "__name__", str(kind))
        raise CheckpointError(f"{file}: '{name}' is {type(value).__name__}, expected {wanted}.")
    return value
