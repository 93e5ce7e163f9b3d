"""Calibrators against their mathematics, and the calibration of a model by each."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from subbyte.errors import DataError, QuantizationError, RegistrationError, UnknownNameError, UsageError
from subbyte.models import create, quantize
from subbyte.models.post import Calibration, calibrator, list_calibrators
from subbyte.models.post.calibrators import get_calibrator
from subbyte.models.post.calibrators.entropy import EMPTY, divergence
from subbyte.models.post.calibrators.mse import squared_error
from subbyte.models.post.sample import Sample
from subbyte.models.quant import combine, quantized_layers

SIGNED, UNSIGNED, FOUR = (-128.0, 127.0), (0.0, 255.0), (-8.0, 7.0)


def step(name: str, values: list[float] | Tensor, codes: tuple[float, float], **options: float) -> float:
    x = torch.as_tensor(values, dtype=torch.float32).reshape(1, -1)
    return float(get_calibrator(name).step_of(options)(x, *codes)[0])


# ---- each against its formula ----


def test_min_max_clips_nothing() -> None:
    assert step("min-max", [-1.0, 0.5, 2.0], SIGNED) == np.float32(2.0) / np.float32(127)
    assert step("min-max", [-4.0, 0.5, 2.0], SIGNED) == 4.0 / 128  # the lowest code is one further from 0
    assert step("min-max", [0.0, 0.5, 5.1], UNSIGNED) == pytest.approx(5.1 / 255)


def test_a_percentile_is_interpolated_between_values() -> None:
    values = list(range(101))  # the q-th percentile is q
    assert step("percentile", values, UNSIGNED, percent=90.0) == pytest.approx(90 / 255)
    assert step("percentile", [-v for v in values], SIGNED, percent=99.5) == pytest.approx(99.5 / 127)
    assert step("percentile", values, SIGNED, percent=100.0) == pytest.approx(100 / 127)


def test_a_percentile_of_mostly_zeros_is_that_of_the_others() -> None:
    assert step("percentile", [0.0] * 999 + [3.0], UNSIGNED, percent=90.0) == pytest.approx(3 / 255)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([SIGNED, UNSIGNED, FOUR, (-2.0, 1.0)]))
def test_the_error_of_mse_is_near_the_least_of_a_dense_search(seed: int, codes: tuple[float, float]) -> None:
    x = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed))
    x = x.abs() if codes[0] == 0 else x
    found = squared_error(x, get_calibrator("mse").step_of({})(x, *codes), *codes)
    dense = torch.linspace(0.02, 1.2, 400) * float(x.abs().amax()) / codes[1]
    least = min(float(squared_error(x, torch.tensor([one]), *codes)) for one in dense)
    assert float(found) <= 1.1 * least


def test_mse_finds_the_step_of_values_on_a_grid_beside_an_outlier() -> None:
    x = torch.arange(-8, 8).repeat(2000) * 0.25
    x = torch.cat([x, torch.tensor([60.0])])
    assert step("mse", x, FOUR) == pytest.approx(0.25, rel=0.03)


def test_the_divergence_of_a_histogram_by_hand() -> None:
    # Two levels of two bins: Q spreads 1 + 3 and 2 + 2 evenly over their bins; nothing is clipped.
    p, q = np.array([1, 3, 2, 2]) / 8, np.array([2, 2, 2, 2]) / 8
    assert divergence(np.array([1, 3, 2, 2]), 0, 2) == pytest.approx(float((p * np.log(p / q)).sum()))
    # What is clipped is in P's last bin and not in Q; an empty bin takes no part.
    p, q = np.array([4, 2 + 5]) / 11, np.array([4, 2]) / 6
    assert divergence(np.array([4, 0, 0, 2]), 5, 2) == pytest.approx(float((p * np.log(p / q)).sum()))
    # A last bin that only clipped values fall into counts EMPTY values in Q.
    p, q = np.array([4, 5]) / 9, np.array([4, EMPTY]) / (4 + EMPTY)
    assert divergence(np.array([4, 0]), 5, 2) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert divergence(np.array([0, 0]), 5, 2) == math.inf


def test_entropy_takes_the_threshold_of_least_divergence() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1)).abs() + 0.01
    bins, levels, largest = 64, 8, float(x.max())
    counts, _ = np.histogram(x.double().numpy(), bins, (0, largest))
    losses = {end: divergence(counts[:end], int(counts[end:].sum()), levels) for end in range(levels, bins + 1)}
    best = min(losses, key=lambda end: losses[end])
    assert best > levels
    assert step("entropy", x, FOUR, bins=bins) == pytest.approx(largest * best / bins / 7, rel=1e-6)


def test_entropy_looks_closer_where_an_outlier_makes_bins_too_wide() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    without = step("entropy", x, SIGNED)
    assert step("entropy", torch.cat([x, torch.tensor([1e4])]), SIGNED) == pytest.approx(without, rel=0.3)


@pytest.mark.parametrize("name", list_calibrators())
def test_a_step_goes_with_the_unit_and_not_with_the_order(name: str) -> None:
    x = torch.randn(1, 3000, generator=torch.Generator().manual_seed(3))
    find = get_calibrator(name).step_of({})
    first = find(x, *SIGNED)
    torch.testing.assert_close(find(8 * x, *SIGNED), 8 * first)
    torch.testing.assert_close(find(x[:, torch.randperm(3000)], *SIGNED), first)
    assert 0 < float(first) <= float(x.abs().max()) / 127 * 1.2


@pytest.mark.parametrize("name", list_calibrators())
def test_rows_have_steps_of_their_own_and_zeros_have_none(name: str) -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(4)) * torch.tensor([[1.0], [0.0], [5.0]])
    find = get_calibrator(name).step_of({})
    together = find(x, *FOUR)
    torch.testing.assert_close(together, torch.cat([find(row.unsqueeze(0), *FOUR) for row in x]))
    assert together[1] == 0


# ---- the sample ----


def test_a_sample_is_whole_while_it_is_small_and_then_uniform_with_its_bounds() -> None:
    small = Sample(most=10)
    small.add(torch.tensor([[1.0, 2.0]]))
    small.add(torch.tensor([[3.0]]))
    assert sorted(small.rows()[0].tolist()) == [1.0, 2.0, 3.0]
    large = Sample(most=2000)
    for start in range(0, 100_000, 1000):
        large.add(torch.arange(start, start + 1000, dtype=torch.float32).reshape(1, -1))
    rows = large.rows()[0]
    assert len(rows) == 2002
    assert (rows.min(), rows.max()) == (0, 99_999)
    assert len(set(rows[:2000].tolist())) == 2000
    tenths = np.histogram(rows[:2000].numpy(), 10, (0, 100_000))[0]
    assert tenths.min() > 140  # of 200 expected in each tenth: 4.5 standard deviations
    assert tenths.max() < 260


# ---- a model ----


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(32, 1, 8, 8, generator=generator) for _ in range(count)]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 10)
    ).eval()


@pytest.mark.parametrize("name", list_calibrators())
def test_a_model_gets_exactly_the_steps_that_the_calibrator_says(name: str) -> None:
    reference, data = small_net(), batches()
    with torch.no_grad():
        inputs = [torch.cat([reference[:depth](b) for b in data]) for depth in (0, 4)]
    model = quantize(copy.deepcopy(reference), combine("int4", "int8"), example=data[0])
    Calibration(name, "min-max")(model, data)
    find = get_calibrator(name).step_of({})
    for layer, x in zip(quantized_layers(model).values(), inputs, strict=True):
        codes = UNSIGNED if float(x.min()) >= 0 else SIGNED
        assert (float(layer.activation_quantizer.low), float(layer.activation_quantizer.high)) == codes
        assert layer.activation_quantizer.scales() == find(x.reshape(1, -1), *codes)[0]
        weight = layer.weight_quantizer.latent().detach().flatten(1)
        expected = get_calibrator("min-max").step_of({})(weight, *FOUR)
        assert torch.equal(layer.weight_quantizer.scales().flatten(), expected)


def test_calibration_in_batches_of_any_size_gives_the_same_model() -> None:
    x = torch.cat(batches())
    states = []
    for size in (128, 17):
        model = quantize(small_net(), "int8", example=x[:2])
        states.append(Calibration("entropy")(model, list(x.split(size))).state_dict())
    # float32 sums of a batch depend on its size in their last bits
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in list_calibrators() if name != "min-max"])
def test_a_layer_with_planted_outliers_loses_less_than_by_min_max(name: str) -> None:
    """Error of the layer's output in the mean over all of its inputs, the outliers among them; 4-bit activations."""
    errors = {}
    for which in ("min-max", name):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(64, 16))
        generator = torch.Generator().manual_seed(6)
        x = torch.randn(512, 64, generator=generator)
        x[torch.tensor([17, 300, 411]), torch.tensor([3, 40, 63])] = torch.tensor([50.0, -45.0, 40.0])
        expected = layer(x).detach()
        model = Calibration(which)(quantize(layer, combine("int8", "int4"), example=x), list(x.split(64)))
        errors[which] = float((model(x) - expected).square().mean())
    assert errors[name] < 0.6 * errors["min-max"]


def test_thresholds_of_signs_start_from_all_batches() -> None:
    data = batches()
    model = quantize(small_net(), combine("binary", "binary"), example=data[0])
    Calibration()(model, data)
    first, second = quantized_layers(model).values()
    assert torch.equal(first.activation_quantizer.threshold, torch.zeros(1, 1, 1, 1))
    with torch.no_grad():
        means = torch.cat([small_net()[:4](b) for b in data]).mean(dim=0)
    torch.testing.assert_close(second.activation_quantizer.threshold.detach(), means)


def test_int8_without_training_is_near_float() -> None:
    torch.manual_seed(0)
    model, data = create("resnet8", channels=1, size=8).eval(), batches()
    with torch.no_grad():
        expected = model(data[0])
        found = Calibration()(quantize(model, "int8", example=data[0]), data)(data[0])
    assert float((found - expected).norm() / expected.norm()) < 0.03


# ---- what is refused ----


def test_data_that_says_nothing_is_refused_with_the_sample() -> None:
    model, (x, *_) = quantize(small_net(), "int8", example=batches()[0]), batches()
    before = copy.deepcopy(model.state_dict())
    for given_batches, words in (
        ([], "no sample"),
        ([torch.zeros_like(x)], "all values of its 32 samples are 0"),
        ([x, torch.where(torch.arange(32).reshape(-1, 1, 1, 1) == 3, torch.nan, x)], "sample 35 holds NaN"),
    ):
        with pytest.raises(DataError, match=words):
            Calibration()(model, given_batches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_infinity_within_the_model_names_the_layer() -> None:
    model = small_net()
    with torch.no_grad():
        model[0].bias[2] = 1e38
        model[1].weight[2] = 1e38
    with pytest.raises(QuantizationError, match="the input of '4' on calibration data: it holds NaN or infinity"):
        Calibration()(quantize(model, "int8", example=batches()[0]), batches())


def test_names_and_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'percentile'"):
        Calibration("percentil")
    with pytest.raises(UsageError, match=r"in \(0, 100\]"):
        Calibration("percentile(percent=101)")
    with pytest.raises(UnknownNameError, match="option of calibrator 'mse'"):
        Calibration("mse(percent=9)")
    with pytest.raises(UsageError, match="not for weights"):
        Calibration(weights="entropy")
    with pytest.raises(UsageError, match="expected one name with its options"):
        Calibration("mse + entropy")


def test_an_incomplete_calibrator_is_refused() -> None:
    def constant(x: Tensor, low: float, high: float) -> Tensor:
        """the same for all"""
        return torch.ones(len(x))

    def bare(x: Tensor, low: float, high: float) -> Tensor:
        return x.amax(dim=1) / high

    for function, words in ((constant, "expected a positive step and 0"), (bare, "no docstring")):
        with pytest.raises(RegistrationError, match=words):
            calibrator("tried", source="nobody")(function)
    assert "tried" not in list_calibrators()
