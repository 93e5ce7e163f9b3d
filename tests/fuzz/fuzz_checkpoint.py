"""Checkpoints: a right one whose description or tensors are changed, with hashes that hold or do not."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from corruption import Rng, changed_json, corrupted, json_bytes, number, pick
from kinds import Fault
from safetensors.torch import load as load_tensors

from subbyte.models import Config, Normalization, load_checkpoint, quantize, save_checkpoint
from subbyte.models.checkpoint import recipe_of
from subbyte.models.zoo import create_for_scheme

SCHEMES = ("ternary", "float", "int8", "binary")


@dataclass(frozen=True)
class Saved:
    """A right checkpoint: its description and its tensors."""

    description: dict[str, Any]
    weights: bytes


def prepare(folder: Path) -> list[Saved]:
    """Small perceptrons of a few schemes."""
    made = []
    for scheme in SCHEMES:
        config = Config(
            model="mlp",
            scheme=scheme,
            shape=(1, 4, 4),
            outputs=3,
            model_options={"hidden": [5]},
            data="digits",
            normalization=Normalization(16.0, (0.3,), (0.4,)),
            class_names=("a", "b", "c"),
        )
        torch.manual_seed(0)
        model = create_for_scheme("mlp", scheme, classes=3, channels=1, size=(4, 4), hidden=[5])
        if scheme != "float":
            model = quantize(model, recipe_of(config), example=torch.randn(4, 1, 4, 4))
        path = save_checkpoint(folder / scheme, model.eval(), config, {"accuracy": 0.5})
        description = json.loads((path / "checkpoint.json").read_text())
        made.append(Saved(description, (path / description["weights"]["file"]).read_bytes()))
    return made


def case(state: list[Saved], rng: Rng, folder: Path) -> str:
    """A checkpoint, loaded: the model holds the file's tensors to the bit, and runs."""
    saved = pick(rng, state)
    description, weights = saved.description, saved.weights
    way = rng.random()
    if way < 0.4:
        weights = _tensors(weights, rng) if rng.random() < 0.6 else corrupted(weights, rng)
        if rng.random() < 0.9:
            description = _hashed(description, weights)
    name = str(description["weights"]["file"])
    if way > 0.35:
        changed = changed_json(description, rng)
        text = json_bytes(changed if rng.random() < 0.3 else {**description, "config": _config(changed, rng)}, rng)
    else:
        text = json.dumps(description).encode()
    given = folder / "given"
    given.mkdir()
    (given / "checkpoint.json").write_bytes(text)
    (given / name).write_bytes(weights)
    loaded = load_checkpoint(given)
    stored = load_tensors(weights)
    state_of = loaded.model.state_dict()
    if set(state_of) != set(stored) or not all(_same(state_of[key], stored[key]) for key in stored):
        raise Fault("the model's tensors are not the file's")
    config = loaded.config
    if config.normalization is not None:
        numbers = (config.normalization.largest, *config.normalization.mean, *config.normalization.deviation)
        if not all(math.isfinite(value) for value in numbers):
            raise Fault(f"a normalization of {numbers}")
    with torch.no_grad():
        result = loaded.model(torch.zeros(2, *config.input_shape[1:]))
    if result.shape != (2, config.outputs):
        raise Fault(f"{config.outputs} classes, but an output of {tuple(result.shape)}")
    return "read"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == torch.bool:  # any byte but 0 is true
        return torch.equal(one, other)
    return one.numpy().tobytes() == other.numpy().tobytes()


def _config(changed: Any, rng: Rng) -> Any:
    """A changed description's config, with a number or an option that matters changed as well."""
    config = changed.get("config") if isinstance(changed, dict) else None
    if not isinstance(config, dict) or rng.random() < 0.4:
        return config
    name = pick(rng, ("outputs", "shape", "input_dtype", "model_options", "model", "scheme", "normalization", "seed"))
    values: dict[str, Any] = {
        "shape": [1, number(rng), 4],
        "model_options": {"hidden": [number(rng)]} if rng.random() < 0.5 else {"hidden": [5] * 200, "bias": 1},
        "model": pick(rng, ("resnet8", "mlp", "vit_micro", "os.system", "")),
        "scheme": pick(rng, ("int4", "ternary", "none", "w4a8")),
        "normalization": {"largest": pick(rng, (0, 1e400, float("nan"), "1")), "mean": [0.1], "deviation": [0.0]},
    }
    return {**config, name: values.get(name, number(rng))}


def _hashed(description: dict[str, Any], weights: bytes) -> dict[str, Any]:
    """The description for other weights: their hash, and in a file's name that is made of it too."""
    old, new = description["weights"]["sha256"], hashlib.sha256(weights).hexdigest()
    file = str(description["weights"]["file"])
    for length in range(64, 7, -1):
        file = file.replace(old[:length], new[:length])
    return {**description, "weights": {**description["weights"], "sha256": new, "file": file}}


def _tensors(weights: bytes, rng: Rng) -> bytes:
    """Another header of safetensors, whose length holds, or other values."""
    (length,) = struct.unpack_from("<Q", weights)
    header, data = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    if rng.random() < 0.3:
        at = int(rng.integers(len(data) - 3)) & ~3
        value = struct.pack("<f", pick(rng, (float("nan"), float("inf"), 1e38, -1e38, 0.0, 1e-45)))
        return weights[: 8 + length] + data[:at] + value + data[at + 4 :]
    text = json_bytes(changed_json(header, rng), rng)
    said = len(text) if rng.random() < 0.95 else number(rng) % (1 << 64)
    return struct.pack("<Q", said) + text + data
