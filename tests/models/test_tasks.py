"""Tasks: each trains, is scored, resumes and is read again; its score and its chance have the values of their formulas;
data and losses that do not fit are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from subbyte.models import Data, get_task, list_tasks, load_checkpoint, train
from subbyte.models.checkpoint import weights_file

TRAIN, TEST = 96, 48


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def data_of(name: str, inputs: Tensor, targets: Tensor, outputs: int, **more: Any) -> Data:
    parts = [
        TensorDataset(x, y) for x, y in zip(inputs.split([TRAIN, TEST]), targets.split([TRAIN, TEST]), strict=True)
    ]
    dtype = str(inputs.dtype).removeprefix("torch.")
    return Data("made", *parts, tuple(inputs.shape[1:]), outputs, dtype, task=name, **more)


def of_classes(name: str, **more: Any) -> Data:
    """Four classes, each around a point of its own."""
    label = torch.arange(TRAIN + TEST) % 4
    return data_of(name, random(4, 6, seed=1)[label] + 0.3 * random(len(label), 6), label, 4, **more)


def of_signs(name: str) -> Data:
    x = random(TRAIN + TEST, 6)
    return data_of(name, x, (x[:, :3] > 0).long(), 3)


def of_values(name: str) -> Data:
    x = random(TRAIN + TEST, 6)
    return data_of(name, x, x @ random(6, 2, seed=2), 2)


def of_waves(name: str, horizon: int = 2) -> Data:
    phase = torch.arange(TRAIN + TEST)[:, None] * 0.37 + torch.arange(8 + horizon) * 0.8
    wave = torch.stack([phase.sin(), phase.cos()], 1)
    return data_of(name, wave[..., :8], wave[..., 8:], 2 * horizon, task_options={"horizon": horizon})


def of_positions(name: str) -> Data:
    x = random(TRAIN + TEST, 2, 5)
    label = x.argmax(1)
    label[:, -1] = -100
    return data_of(name, x, label, 2)


def of_text(name: str) -> Data:
    tokens = (torch.arange(TRAIN + TEST)[:, None] + torch.arange(7)) * 3 % 7  # each token is followed by one alone
    return data_of(name, tokens[:, :6], tokens[:, 1:], 7, task_options={"unit": "byte"})


def of_pixels(name: str) -> Data:
    x = random(TRAIN + TEST, 2, 4, 4)
    return data_of(name, x, (x[:, 0] > x[:, 1]).long() + (x[:, 1] > 1).long(), 3)


class Moved(nn.Module):
    """Linear over the channels [N, C, L] of a series, or from tokens [N, T] to logits [N, T, V]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.movedim(1, -1))
        return y.movedim(-1, 1)


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


@dataclass(frozen=True)
class Example:
    """Tiny data of a task, and a network for it."""

    data: Callable[[str], Data]
    network: Callable[[], nn.Module]
    options: Mapping[str, Any]
    epochs: int = 4


EXAMPLES = {
    "classification": Example(of_classes, lambda: perceptron(6, 4), {}),
    "multi-label": Example(of_signs, lambda: perceptron(6, 3), {}),
    "regression": Example(of_values, lambda: perceptron(6, 2), {}),
    "forecasting": Example(of_waves, lambda: perceptron(16, 4), {}),
    "sequence-labelling": Example(
        of_positions, lambda: nn.Sequential(Moved(nn.Linear(2, 8)), nn.ReLU(), Moved(nn.Linear(8, 2))), {}
    ),
    "language-modelling": Example(of_text, lambda: nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7)), {}),
    "segmentation": Example(of_pixels, lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)), {}),
    "metric-learning": Example(of_classes, lambda: perceptron(6, 5), {"width": 5}),
    "contrastive": Example(lambda name: of_classes(name, augment=noise), lambda: perceptron(6, 5), {"width": 5}),
    "few-shot": Example(of_classes, lambda: perceptron(6, 5), {"width": 5, "ways": 3, "queries": 3}),
}


class StopAt(Callback):
    """Break off as a crash would, in front of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


def run(name: str, out: Path, **more: Any) -> Any:
    example = EXAMPLES[name]
    torch.manual_seed(0)
    options = {"task_options": example.options, "learning_rate": 0.03, "batch_size": None, "progress": False}
    network = example.network()
    return train(network, example.data(name), "int8", example.epochs, out, **{**options, **more})


@pytest.mark.parametrize("name", list_tasks())
def test_a_task_trains_resumes_and_is_read(tmp_path: Path, name: str) -> None:
    """Its score is above chance, that of the loaded model, and that of a run which broke off in an epoch."""
    whole, data, made = run(name, tmp_path / "whole"), EXAMPLES[name].data(name), get_task(name)
    metric = whole.metric
    assert next(iter(whole.history[0])) == "epoch"
    assert whole.history[-1][f"test_{metric.name}"] == whole.score
    inputs, targets = data.test_arrays()
    chance = get_task(name, **{**data.task_options, **EXAMPLES[name].options}).chance(inputs, targets)
    assert metric.better(whole.score) > metric.better(chance), (whole.score, chance)

    loaded = load_checkpoint(whole.folder, EXAMPLES[name].network())
    assert (loaded.config.task, loaded.config.shape) == (name, data.shape)
    assert loaded.metrics[metric.name] == whole.score
    again = get_task(name, **loaded.config.task_options)
    score = again.score(data.shape)
    with torch.no_grad():
        score.add(loaded.model(torch.from_numpy(inputs)).numpy(), targets)
    assert score.result() == pytest.approx(whole.score, abs=1e-6)
    assert again.fits(tuple(loaded.model(torch.from_numpy(inputs[:1])).shape[1:]), data)
    assert made.gives

    with pytest.raises(RuntimeError, match="power"):
        run(name, tmp_path / "broken", save_every=2, callbacks=[StopAt(5)])
    resumed = run(name, tmp_path / "broken", save_every=2, resume=True)
    tensors = [load_file(weights_file(one.folder)) for one in (whole, resumed)]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}
