"""Every registered weight quantizer, activation quantizer and scheme keeps what quantizers promise, on edges too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError, RegistrationError
from subbyte.formats import LowBitTensor
from subbyte.formats.ternary import TERNARY
from subbyte.models.quant import (
    AbsMean,
    LearnedStep,
    Scheme,
    WeightQuantizer,
    all_schemes,
    get_scheme,
    parameter_groups,
    quantize,
    register_activations,
    register_scheme,
    register_weights,
)
from subbyte.models.quant.first_batch import FirstBatchQuantizer
from subbyte.models.quant.promises import broken_on

WEIGHTS = list(register_weights.makers)
ACTIVATIONS = list(register_activations.makers)
SCHEMES = [scheme.name for scheme in all_schemes() if not scheme.is_float]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


EDGES = {
    "normal": normal(5, 12),
    "convolution": normal(4, 3, 3, 3),
    "zeros": torch.zeros(3, 4),
    "a row of zeros": torch.cat([torch.zeros(1, 6), normal(2, 6)]),
    "one element": torch.tensor([[-0.3]]),
    "tiny": 1e-30 * normal(3, 4),
    "large": 1e30 * normal(3, 4),
    "one sign": normal(3, 4).abs(),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, edge: str) -> None:
    w = nn.Parameter(EDGES[edge].clone())
    quantizer = register_weights.make(name).weight_quantizer(w)
    assert broken_on(quantizer, w) is None
    scales = quantizer.scales()
    assert scales.shape == quantizer.granularity.scale_shape((len(w), w[0].numel()))
    assert bool((scales > 0).all())
    packed = quantizer.export()
    again = LowBitTensor.from_packed(packed.format, packed.shape, packed.packed, packed.scale, packed.granularity)
    with torch.no_grad():
        np.testing.assert_array_equal(again.dequantize(), quantizer.fake_quantize(w).numpy())
    grad = 1 + normal(*w.shape).abs()
    quantizer.fake_quantize(w).backward(grad)
    assert w.grad is not None
    assert bool(w.grad.isfinite().all())
    assert edge not in ("normal", "convolution") or bool(w.grad.any())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in quantizer.parameters())
    asked = [p for group in quantizer.parameter_groups() for p in group.parameters]
    assert [id(p) for p in asked] == [id(w), *(id(p) for p in quantizer.parameters())]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, training: bool, edge: str) -> None:
    x = EDGES[edge].clone().requires_grad_()
    layer = nn.Linear(x.shape[1], 2) if x.dim() == 2 else nn.Conv2d(x.shape[1], 2, 1)
    quantizer = register_activations.make(name).activation_quantizer(layer).train(training)
    assert broken_on(quantizer, x.detach()) is None
    quantizer.fake_quantize(x).backward(1 + normal(*x.shape).abs())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert edge not in ("normal", "convolution") or bool(x.grad.any())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in quantizer.parameters())
    other = register_activations.make(name).activation_quantizer(layer).train(training)
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(other.codes(x), quantizer.codes(x))
    asked = [id(p) for group in quantizer.parameter_groups() for p in group.parameters]
    assert asked == [id(p) for p in quantizer.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_first_batch_with_nan_is_refused(name: str, value: float) -> None:
    quantizer = register_activations.make(name).activation_quantizer(nn.Linear(2, 1))
    if isinstance(quantizer, FirstBatchQuantizer):
        with pytest.raises(QuantizationError, match="NaN or infinity"):
            quantizer(torch.tensor([[1.0, value]]))
    else:
        assert not list(quantizer.parameters())  # nothing that a bad batch could spoil


@pytest.mark.parametrize("name", SCHEMES)
def test_schemes(name: str) -> None:
    def made() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        return quantize(net, get_scheme(name, keep=None), example=normal(1, 2, 4, 4))

    model = made()
    model(normal(6, 2, 4, 4)).square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    groups = parameter_groups(model, learning_rate=0.1, weight_decay=0.01)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in trained)
    other = made()
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    x = normal(2, 2, 4, 4)
    assert torch.equal(other.eval()(x), model.eval()(x))
    spoilt = nn.Linear(2, 2)
    nn.init.constant_(spoilt.weight, float("nan"))
    with pytest.raises(QuantizationError, match="NaN or infinite weights"):
        quantize(nn.Sequential(spoilt), get_scheme(name, keep=None))


# ---- what is refused ----


class Doubled(WeightQuantizer):
    """Levels that ternary codes do not have."""

    format = TERNARY

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.attach(weight)

    def scale(self, w: Tensor) -> Tensor:
        return torch.ones(())

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return 2 * torch.sign(w)


class Unlike(Doubled):
    """Its fake-quantized values are others than those of its codes."""

    def levels(self, w: Tensor, scale: Tensor) -> Tensor:
        return torch.sign(w)

    def fake_quantize(self, w: Tensor) -> Tensor:
        return 0.5 * torch.sign(w)


class Partial(WeightQuantizer):
    """Without levels."""

    format = TERNARY

    def scale(self, w: Tensor) -> Tensor:
        return torch.ones(())


@dataclass(frozen=True)
class Wrong:
    """A config of one of them."""

    kind: Any
    format_name: str = "ternary"

    def weight_quantizer(self, weight: Tensor) -> Any:
        return self.kind(weight) if self.kind is not Partial else Partial()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Wrong(Doubled), "its code -2 is not a level of ternary"),
        (Wrong(Unlike), "bit for bit"),
        (Wrong(Partial), "its Partial lacks 'levels'"),
        (Wrong(Unlike, "int4"), "its format_name is 'int4', but its quantizer's format is 'ternary'"),
        (Wrong(Unlike, "int1"), "'int1', which is not a format"),
        (Wrong(nn.Identity), "makes a Identity; expected a WeightQuantizer"),
        (Wrong(None), r"fails on a weight or input \[2, 4\]: TypeError"),
    ],
)
def test_a_quantizer_that_breaks_a_promise_is_refused(config: Any, message: str) -> None:
    def entry() -> Any:
        """An entry."""
        return config

    with pytest.raises(RegistrationError, match=f"weight quantizer 'new': .*{message}"):
        register_weights("new")(entry)
    assert "new" not in register_weights.makers


def test_an_incomplete_scheme_is_refused() -> None:
    def nameless() -> Scheme:
        return Scheme(AbsMean(), LearnedStep(8))

    def without_default(bits: int) -> Scheme:
        """An option without a default."""
        return Scheme()

    def nothing() -> Any:
        """No scheme."""

    for make, message in ((nameless, "no docstring"), (without_default, "'bits'"), (nothing, "expected a Scheme")):
        with pytest.raises(RegistrationError, match=message):
            register_scheme("new")(make)
    assert "new" not in [scheme.name for scheme in all_schemes()]
