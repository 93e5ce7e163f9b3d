"""Where activation quantizers start, what does not start them, and what follows a copy, an average or a write."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from subbyte.errors import QuantizationError
from subbyte.models.quant import get_scheme, quantize
from subbyte.models.quant.first_batch import not_starting
from subbyte.models.quant.statistics import least_error_step

SCHEMES = ["int8", "ternary", "binary"]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def batch(seed: int = 1) -> Tensor:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def quantized(scheme: str) -> nn.Module:
    return quantize(small(), get_scheme(scheme, keep=None), example=batch())


# ---- zeros ----


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_start_nothing_and_what_was_computed_from_them_is_forgotten(scheme: str, training: bool) -> None:
    # The sign of zero is +1: in a binary network only the first layer sees zeros.
    fresh, zeroed = (quantized(scheme)[:1] if scheme == "binary" else quantized(scheme) for _ in range(2))  # type: ignore[index]
    fresh.eval()
    zeroed.train(training)
    for bias in (p for n, p in zeroed.named_parameters() if n.endswith("bias")):
        nn.init.zeros_(bias)  # so that every layer sees zeros
    zeroed(torch.zeros(2, 1, 6, 6))
    zeroed.eval()(torch.zeros(2, 1, 6, 6))
    for module in (m for m in zeroed.modules() if hasattr(m, "initialized")):
        assert (bool(module.called), bool(module.initialized), module.started) == (True, False, False)
    zeroed.load_state_dict({k: v for k, v in fresh.state_dict().items() if "called" not in k}, strict=False)
    assert torch.equal(zeroed(batch()), fresh(batch()))
    assert torch.equal(zeroed(batch(2)), fresh(batch(2)))


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_any_other_batch_starts(magnitude: float) -> None:
    quantizer = quantize(nn.Sequential(nn.Linear(2, 2)), "int8")[0].activation_quantizer  # type: ignore[index]
    quantizer(torch.tensor([[0.0, magnitude]]))
    assert quantizer.started


def test_within_not_starting_nothing_starts_and_what_never_ran_is_told() -> None:
    model = quantized("int8").eval()
    before = copy.deepcopy(model.state_dict())
    with not_starting() as untouched:
        model(batch())
    assert len(untouched) == 5  # two convolutions, two pools, one linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(batch())
    with not_starting() as untouched:
        model(batch())
    assert untouched == []


# ---- several calls in one forward ----


class Twice(nn.Module):
    """One layer for two values of different range and sign."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.abs()) + self.layer(6 * x)
        return result


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_is_called_twice_starts_from_both_calls(training: bool) -> None:
    model = quantize(Twice(), "int8").train(training)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = model(x)
    quantizer = model.layer.activation_quantizer
    both = torch.cat([x.abs(), 6 * x]).reshape(1, -1)
    assert quantizer.signed
    assert torch.equal(quantizer.scales(), least_error_step(both, -128, 127)[0])
    started = quantizer.scales()
    model(100 * x)
    assert torch.equal(quantizer.scales(), started)  # a second forward changes nothing
    if training:
        y.sum().backward()  # a start after a call does not break the call's backward pass
        assert torch.isfinite(quantizer.change.grad)
    float_model = Twice()
    error = (model.eval()(x) - float_model(x)).abs().max() / float_model(x).abs().max()
    assert error < 0.03


def test_a_layer_that_is_called_by_itself_starts_from_that_call() -> None:
    model = quantize(Twice(), "int8")
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    model.layer(x.abs())
    model.layer(-9 * x)
    quantizer = model.layer.activation_quantizer
    assert not quantizer.signed
    assert torch.equal(quantizer.scales(), least_error_step(x.abs().reshape(1, -1), 0, 255)[0])
    model(x)
    assert not quantizer.signed


def test_a_recurrent_cell_that_starts_from_zeros_is_as_near_as_each_step_by_itself() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 8)
            for step in range(x.shape[1]):
                state = torch.tanh(self.inner(x[:, step]) + self.outer(state))
            return state

    x = torch.randn(16, 5, 4, generator=torch.Generator().manual_seed(0))
    plain = Recurrent()
    model = quantize(copy.deepcopy(plain), get_scheme("int8", keep=None), example=x).eval()
    model(x)
    assert (model(x) - plain(x)).abs().max() < 0.02 * plain(x).abs().max()


def test_a_forward_that_fails_ends() -> None:
    model = quantize(Twice(), "int8")
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    model.layer(torch.ones(2, 6))
    model.layer(-torch.ones(2, 6))
    assert not model.layer.activation_quantizer.signed


def test_thresholds_of_a_shared_layer_are_the_means_of_both_calls() -> None:
    model = quantize(Twice(), get_scheme("binary", keep=None))
    x = torch.rand(32, 6, generator=torch.Generator().manual_seed(0))
    model(x)
    expected = torch.cat([x, 6 * x]).mean(dim=0)
    torch.testing.assert_close(model.layer.activation_quantizer.threshold.detach(), expected)


def test_nan_in_a_later_call_of_the_first_forward_is_refused() -> None:
    class Spoilt(Twice):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x) + self.layer(x / 0)
            return result

    with pytest.raises(QuantizationError, match="NaN or infinity"):
        quantize(Spoilt(), "int8")(torch.zeros(1, 6).fill_(1.0))


# ---- constants: copies, averages, writes ----


def train_a_step(model: nn.Module, seed: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(batch(seed)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_eval_mode_makes_neither_parameters_nor_buffers(scheme: str) -> None:
    model = quantized(scheme)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    model(batch())
    model.eval()(batch())
    assert [name for name, _ in (*model.named_parameters(), *model.named_buffers())] == names


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_averaged_copy_is_the_model_of_the_averaged_parameters(scheme: str, use_buffers: bool, early: bool) -> None:
    model = quantized(scheme)
    if not early:  # else the copy is made before anything has started
        model(batch())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    average.eval()
    for seed in range(3):
        train_a_step(model, seed)
        average.update_parameters(model)
        got = average(batch())  # without another eval(): the copy sees that its parameters were written to
        loaded = quantized(scheme)
        loaded.load_state_dict(average.module.state_dict(), strict=True)
        assert torch.equal(got, loaded.eval()(batch()))
        model.eval()(batch())


def writes() -> list[Callable[[nn.Module], object]]:
    return [
        lambda m: m[0].parametrizations.weight.original.neg_(),
        lambda m: m[0].bias.add_(1.0),
        lambda m: m[1].running_var.mul_(2.0),
        lambda m: m[3].activation_quantizer.change.add_(0.5),
        lambda m: m[4].parametrizations.weight[0].change.add_(0.1),
        lambda m: m.to(torch.float64).to(torch.float32),
    ]


@pytest.mark.parametrize("index", range(len(writes())))
def test_what_is_written_to_in_eval_mode_counts_at_once(index: int) -> None:
    model = quantized("int8").eval()
    model(batch())
    before = model(batch())
    with torch.no_grad():
        writes()[index](model)
        got = model(batch())
        assert torch.equal(got, model.train().eval()(batch()))
    assert torch.equal(got, before) == (index == 5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_amid_training_goes_on_like_its_original(scheme: str) -> None:
    model = quantized(scheme)
    train_a_step(model, 0)
    model.eval()(batch())
    copied = copy.deepcopy(model)
    for one in (model, copied):
        train_a_step(one, 1)
    assert torch.equal(model.eval()(batch()), copied.eval()(batch()))
