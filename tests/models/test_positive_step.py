"""A learned step stays positive under any optimizer, moves as it says, and is read from files of earlier versions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from saved_checkpoint import of_an_image
from torch import Tensor, nn

from subbyte.formats import PerChannel
from subbyte.models.checkpoint import Config, load_checkpoint, save_checkpoint, weights_file
from subbyte.models.quant import LearnedStep, quantize
from subbyte.models.quant.positive_step import PositiveStep
from subbyte.models.zoo import create_for_scheme

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "adamw 1e-2": lambda p: torch.optim.AdamW(p, 1e-2),
    "adam 3e-2": lambda p: torch.optim.Adam(p, 3e-2),
    "sgd 0.1, momentum, decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "adamw, decay 1": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1.0),
}


def steps(model: nn.Module) -> Tensor:
    return torch.cat([m.step.detach().flatten() for m in model.modules() if isinstance(m, PositiveStep)])


def activation(*values: float, bits: int = 8) -> PositiveStep:
    quantizer = LearnedStep(bits).activation_quantizer(nn.Linear(1, 1))
    quantizer(torch.tensor([values]))
    assert isinstance(quantizer, PositiveStep)
    return quantizer


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(2**-16, 2**16, width=32))
def test_any_parameter_gives_a_positive_finite_step(change: float, first: float) -> None:
    quantizer = activation(first)
    start = quantizer.step.detach()
    assert torch.equal(start, quantizer.first_step)  # a factor of exactly 1
    with torch.no_grad():
        quantizer.change.fill_(change)
        step = quantizer.step
    assert 0 < float(step) < math.inf
    if abs(change) < 10 and float(step) > 1e-4:
        assert float(step / start) == pytest.approx(1 + change if change > 0 else math.exp(change), rel=1e-6)


def test_adam_moves_the_range_of_a_weight_as_far_as_a_weight() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -0.25], [40.0, -3.0]]))
    quantizer = LearnedStep(4, PerChannel(0)).weight_quantizer(weight)
    assert isinstance(quantizer, PositiveStep)
    before = quantizer.step.detach() * 7
    optimizer = torch.optim.Adam([weight, quantizer.change], 1e-3)
    quantizer.fake_quantize(weight * 1.5).sum().backward()  # 1.5 times the largest code: gradients are not zero
    optimizer.step()
    moved = (quantizer.step.detach() * 7 - before).abs()
    torch.testing.assert_close(moved, torch.full((2,), 1e-3), rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("unit", [1e-3, 1000.0])
def test_activations_learn_alike_in_any_unit(unit: float) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    grads = []
    for scale in (1.0, unit):
        quantizer = LearnedStep(4).activation_quantizer(nn.Linear(1, 1))
        (quantizer(x * scale) / scale).square().sum().backward()
        grads.append(quantizer.change.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_parameter_group_trains_and_no_step_dies(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(24, 1, 4, 4), torch.arange(24) % 3
    x[:, 0, 0] += 2 * y[:, None]
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip
    quantize(model, scheme, example=x)
    optimizer = OPTIMIZERS[name](model.parameters())
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = steps(model)
    assert bool((found > 1e-5).all())
    assert bool(torch.isfinite(found).all())
    assert min(losses[-5:]) < 0.5 * losses[0]


def test_channels_of_zeros_start_at_the_mean_step_of_the_others() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.4, 0.7], [0.0, 0.0], [-4.2, 0.7]])
    quantizer = LearnedStep(4, PerChannel(0)).weight_quantizer(weight)
    found = quantizer.scales()
    assert found[0] == found[2] == (found[1] + found[3]) / 2
    assert LearnedStep(4).weight_quantizer(torch.zeros(3, 25)).scales().item() == pytest.approx(1 / (5 * 7))


def test_a_checkpoint_of_version_1_has_the_same_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = quantize(create_for_scheme("mlp", "int4", channels=1, size=8), "int4", example=torch.zeros(1, 1, 8, 8))
    x = torch.randn(8, 1, 8, 8)
    model(x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, PositiveStep):
                module.change.uniform_(-0.1, 0.1)
        expected = model.eval()(x)
    folder = save_checkpoint(tmp_path / "new", model, Config("mlp", "int4", (1, 8, 8), 10))
    # as version 1 wrote it: the steps themselves, and nothing of `called`
    old = {}
    for name, tensor in load_file(weights_file(folder)).items():
        path, _, last = name.rpartition(".")
        if last == "change":
            old[f"{path}.step"] = model.get_submodule(path).step.detach()
        elif last not in ("first_step", "called"):
            old[name] = tensor
    weights_file(folder).unlink()
    save_file(old, folder / "model.safetensors")
    description = of_an_image(json.loads((folder / "checkpoint.json").read_text()))
    description["version"] = 1
    description["weights"]["file"] = "model.safetensors"
    description["weights"]["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(description))
    loaded = load_checkpoint(folder).model
    assert torch.equal(loaded(x), expected)
    assert torch.equal(steps(loaded), steps(model))
    again = quantize(create_for_scheme("mlp", "int4", channels=1, size=8), "int4", example=torch.zeros(1, 1, 8, 8))
    again.load_state_dict(old, strict=True)
    assert torch.equal(again.eval()(x), expected)
