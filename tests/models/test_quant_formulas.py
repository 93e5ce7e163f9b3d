"""Quantizer formulas against golden values, against NumPy, and their gradients against the surrogate that is stated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.formats import PerChannel, PerGroup, PerTensor, reference
from subbyte.models.quant import AbsMean, DeepShiftQ, DynamicPerToken, LearnedStep, Sign, Threshold, primitives
from subbyte.models.quant.estimators.learned_step import learned_step
from subbyte.models.quant.estimators.reste import reste_order, reste_sign, reste_slope

W0 = torch.tensor([[0.9, -0.3, 0.05, -1.2], [0.2, 0.1, -0.1, -0.4]])
WEIGHTS = [
    LearnedStep(8, PerChannel(0)),
    LearnedStep(4, PerChannel(0)),
    LearnedStep(4, PerGroup(3)),
    LearnedStep(2, PerTensor()),
    AbsMean(),
    AbsMean("median"),
    Sign(),
    DeepShiftQ(),
]
finite = st.floats(-100, 100, width=32)


def matrices() -> st.SearchStrategy[Tensor]:
    shape = st.tuples(st.integers(1, 4), st.integers(1, 7))
    return shape.flatmap(
        lambda s: st.lists(finite, min_size=s[0] * s[1], max_size=s[0] * s[1]).map(
            lambda v: torch.tensor(v, dtype=torch.float32).reshape(s)
        )
    )


# ---- golden values ----


def test_learned_step_golden_codes_and_step_gradient() -> None:
    x = torch.tensor([-2.0, -0.3, 0.2, 0.9], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    low, high = torch.tensor(-2.0), torch.tensor(1.0)
    y = learned_step(x, step, low, high, 4)
    assert (y / 0.5).tolist() == [-2, -1, 0, 1]
    gamma = 1 / math.sqrt(4 * 1)
    y[0].backward()
    assert step.grad == pytest.approx(-2 * gamma)


def test_learned_step_starts_at_twice_the_mean_over_root_of_the_largest_level() -> None:
    quantizer = LearnedStep(4, PerChannel(0), "mean").weight_quantizer(W0)
    np.testing.assert_allclose(quantizer.scales().numpy(), 2 * np.array([0.6125, 0.2]) / math.sqrt(7), rtol=1e-6)


def test_group_scales_are_those_of_each_group_with_a_shorter_last_one() -> None:
    quantizer = LearnedStep(4, PerGroup(3), "mean").weight_quantizer(W0)
    means = np.array([[1.25 / 3, 1.2], [0.4 / 3, 0.4]])
    np.testing.assert_allclose(quantizer.scales().numpy(), 2 * means / math.sqrt(7), rtol=1e-6)
    assert quantizer.export().scale.shape == (2, 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_least_error_start_is_the_best_of_its_grid_and_no_worse_than_the_mean(bits: int) -> None:
    w = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [1.0], [50.0]])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def error(step: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values = w.numpy().astype(float)
        return np.square(np.clip(np.round(values / step), low, high) * step - values).sum(axis=1, keepdims=True)

    found, mean = (
        LearnedStep(bits, PerChannel(0), initial).weight_quantizer(w).scales().numpy().astype(float)[:, None]
        for initial in ("error", "mean")
    )
    grid = [error(w.abs().amax(dim=1, keepdim=True).numpy() * (1 - 0.05 * i) / high) for i in range(15)]
    np.testing.assert_allclose(error(found), np.min(grid, axis=0), rtol=1e-4)
    assert (error(found) <= 1.02 * error(mean)).all()


def test_abs_mean_golden() -> None:
    quantizer = AbsMean().weight_quantizer(W0)
    assert quantizer.scales().item() == pytest.approx(0.40625)
    assert quantizer.codes(W0).tolist() == [[1, -1, 0, -1], [0, 0, 0, -1]]


def test_lower_median_golden() -> None:
    quantizer = AbsMean("median").weight_quantizer(W0)
    assert quantizer.scales().item() == pytest.approx(0.2)
    assert quantizer.codes(W0).tolist() == [[1, -1, 0, -1], [1, 0, 0, -1]]


def test_binary_golden() -> None:
    quantizer = Sign().weight_quantizer(W0)
    np.testing.assert_allclose(quantizer.scales().numpy(), [0.6125, 0.2], rtol=1e-6)
    assert quantizer.codes(W0).tolist() == [[1, -1, 1, -1], [1, 1, -1, -1]]
    assert quantizer.codes(torch.tensor([[0.0, -0.0]])).tolist() == [[1, 1]]


def test_deep_shift_golden_exponents() -> None:
    quantizer = DeepShiftQ().weight_quantizer(W0)
    exponents = torch.log2(quantizer.dequantize(quantizer.codes(W0)).abs())
    assert exponents.tolist() == [[0, -2, -4, 0], [-2, -3, -3, -1]]
    assert torch.log2(quantizer.scales()).tolist() == [-6, -7]


def test_deep_shift_rounds_small_weights_to_zero_or_the_smallest_power() -> None:
    w = torch.tensor([[1.0, 2**-6, 0.51 * 2**-6, 0.5 * 2**-6, -0.6 * 2**-6, 0.0]])
    assert DeepShiftQ().weight_quantizer(w).codes(w).tolist() == [[64, 1, 1, 0, -1, 0]]


@given(st.floats(2**-20, 2**20, width=32))
def test_deep_shift_exponent_is_the_rounded_logarithm(value: float) -> None:
    w = torch.tensor([[value]])
    expected = round(math.log2(value))  # no float32 lies on a tie: sqrt(1/2) is irrational
    assert math.log2(DeepShiftQ().weight_quantizer(w).dequantize(torch.tensor([[64.0]])).item()) == max(expected, -17)


@pytest.mark.parametrize(
    ("x", "order", "slope"), [(0.25, 1, 1), (0.25, 2, 1), (0.25, 3, 0.8399), (0.1, 2, 3.1623), (0.05, 3, 4.6416)]
)
def test_reste_slope_golden(x: float, order: float, slope: float) -> None:
    assert reste_slope(torch.tensor([x, -x]), order).tolist() == pytest.approx([slope, slope], rel=1e-4)


def test_reste_slope_is_zero_beyond_its_clip_and_its_order_grows_from_1_to_3() -> None:
    assert reste_slope(torch.tensor([1.5, 1.51, -2.0]), 1.0).tolist() == [1, 0, 0]
    assert [reste_order(r) for r in (0.0, 1.0)] == pytest.approx([1, 3])
    assert reste_order(0.5) == pytest.approx(1 + 2 * (1 - math.sqrt(0.5)))


# ---- what every quantizer promises ----


@pytest.mark.parametrize("config", WEIGHTS, ids=str)
@settings(max_examples=25)
@given(w=matrices())
def test_weight_quantizers_agree_with_their_codes_and_their_export(config: LearnedStep, w: Tensor) -> None:
    quantizer = config.weight_quantizer(w)
    value, codes = quantizer.fake_quantize(w).detach(), quantizer.codes(w)
    assert torch.equal(value, quantizer.dequantize(codes))
    packed = quantizer.export()
    assert packed.format.name == config.format_name
    assert np.array_equal(packed.levels(), codes.numpy())
    assert np.array_equal(packed.dequantize(), value.numpy())
    assert (quantizer.scales() > 0).all()


@settings(max_examples=50)
@given(x=matrices(), step=st.floats(2**-10, 10, width=32))
def test_quantize_equals_the_reference(x: Tensor, step: float) -> None:
    inverse = np.float32(1) / np.float32(step)
    codes = primitives.quantize(x, torch.tensor(inverse), torch.tensor(-8.0), torch.tensor(7.0))
    assert np.array_equal(codes.numpy(), reference.quantize(x.numpy(), inverse, -8, 7))


@settings(max_examples=50)
@given(x=matrices())
def test_per_token_and_binarize_equal_the_reference(x: Tensor) -> None:
    codes, step = primitives.quantize_per_token(x)
    expected, expected_step = reference.quantize_per_token(x.numpy())
    assert np.array_equal(codes.numpy(), expected)
    assert np.array_equal(step.numpy(), expected_step)
    threshold = x.mean(dim=0)
    assert np.array_equal(primitives.binarize(x, threshold).numpy(), reference.binarize(x.numpy(), threshold.numpy()))


@pytest.mark.parametrize("config", WEIGHTS, ids=str)
def test_decode_is_the_inverse_of_packing(config: LearnedStep) -> None:
    w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = config.weight_quantizer(w)
    packed = quantizer.export()
    levels = primitives.decode(torch.from_numpy(packed.packed), packed.shape, packed.format)
    assert torch.equal(levels, quantizer.codes(w))
    if isinstance(quantizer.granularity, PerGroup):
        values = primitives.dequantize_grouped(
            torch.from_numpy(packed.packed), packed.shape, quantizer.scales(), 3, packed.format
        )
        assert np.array_equal(values.detach().numpy(), packed.dequantize())


# ---- activations ----


@pytest.mark.parametrize(
    ("batch", "low", "high", "factor"), [([0.0, 1.0, 2.0], 0, 255, 4), ([-1.0, 1.0, 2.0], -128, 127, 2)]
)
def test_first_batch_gives_sign_and_step(batch: list[float], low: int, high: int, factor: int) -> None:
    quantizer = LearnedStep(8, initial="mean").activation_quantizer(nn.Linear(3, 1))
    x = torch.tensor([batch])
    quantizer(x)
    assert (quantizer.format.levels.values.min(), quantizer.format.levels.values.max()) == (low, high)
    assert quantizer.scales().item() == pytest.approx(factor * x.abs().mean().item() / math.sqrt(high))
    before = quantizer.scales()
    quantizer(100 * x)
    assert torch.equal(quantizer.scales(), before)
    assert torch.equal(quantizer.fake_quantize(x), quantizer.dequantize(quantizer.codes(x)))


def test_a_zero_first_batch_is_passed_over_and_nan_is_refused() -> None:
    quantizer = LearnedStep(8).activation_quantizer(nn.Linear(3, 1)).eval()
    assert not quantizer.codes(torch.zeros(2, 3)).any()
    assert not quantizer.started
    with pytest.raises(QuantizationError, match="NaN"):
        quantizer(torch.tensor([[1.0, float("nan"), 0.0]]))
    quantizer(torch.ones(1, 3))
    assert quantizer.started


def test_thresholds_start_at_zero_or_at_the_channel_means_of_a_positive_batch() -> None:
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    signed, positive = (Threshold().activation_quantizer(nn.Conv2d(3, 1, 1)) for _ in range(2))
    signed(x - 0.5)
    positive(x)
    assert not signed.threshold.any()
    np.testing.assert_allclose(positive.threshold.detach().flatten(), x.mean(dim=(0, 2, 3)), rtol=1e-6)
    assert torch.equal(positive.fake_quantize(x), positive.dequantize(positive.codes(x)))


def test_per_token_is_exact_per_row_and_has_no_stored_scale() -> None:
    quantizer = DynamicPerToken().activation_quantizer(nn.Linear(3, 1))
    x = torch.tensor([[1.0, -0.5, 0.25], [100.0, 0.0, -100.0]])
    codes, step = quantizer.quantize(x)
    assert torch.equal(quantizer.fake_quantize(x), quantizer.dequantize(codes, step))
    with pytest.raises(QuantizationError, match="no stored scale"):
        quantizer.scales()


# ---- gradients, against the stated surrogate ----


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(3)], ids=str)
def test_learned_step_gradients(granularity: PerTensor | PerChannel | PerGroup) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(2, 4, generator=generator).requires_grad_()
    grad = torch.randn(2, 4, generator=generator)
    quantizer = LearnedStep(3, granularity).weight_quantizer(w)
    quantizer.change.data.copy_(quantizer.unit() * math.log(0.4))  # so that some weights are clipped
    quantizer.fake_quantize(w).backward(grad)
    step = quantizer.expand(quantizer.step.detach(), w).expand_as(w)
    v = (w.detach() * (1 / step)).numpy()
    assert (np.abs(v) > 4).any()
    inside = (v >= -4) & (v <= 3)
    slope = np.where(v < -4, -4, np.where(v > 3, 3, np.round(v) - v))
    sharing = {"tensor": 8, "channel": 4, "group": 3}[granularity.name]
    per_element = torch.from_numpy(slope).float() * grad / math.sqrt(sharing * 3)
    sums = {
        "tensor": lambda: per_element.sum(),
        "channel": lambda: per_element.sum(dim=1),
        "group": lambda: torch.stack([per_element[:, :3].sum(dim=1), per_element[:, 3]], dim=1),
    }[granularity.name]()
    torch.testing.assert_close(w.grad, grad * torch.from_numpy(inside))
    # The paper's gradient of the step, times d step / d change, times the square root of the largest code.
    chain = quantizer.step.detach() / quantizer.unit() * math.sqrt(3)
    torch.testing.assert_close(quantizer.change.grad, sums * chain)


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("bounds", [(-128.0, 127.0), (-2.0, 1.0), (0.0, 15.0)], ids=str)
def test_learned_step_in_few_passes_has_the_bits_of_its_formula(
    bounds: tuple[float, float], grad_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 3, 5, 5, generator=generator).mul_(bounds[1]).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, bounds[0] * 0.75, bounds[1] * 0.75])
    grad = torch.randn(4, 3, 5, 5, generator=generator).contiguous(memory_format=grad_format)
    step, low, high = torch.tensor(0.75, requires_grad=True), torch.tensor(bounds[0]), torch.tensor(bounds[1])
    y = learned_step(x.requires_grad_(), step, low, high, x.numel())
    y.backward(grad)
    v = x.detach() * (1.0 / step.detach())
    inside = (v >= low) & (v <= high)
    slope = torch.where(inside, torch.round(v) - v, torch.clamp(v, low, high))
    assert inside.any()
    assert not inside.all()
    assert torch.equal(y, torch.clamp(torch.round(v), low, high) * step.detach())
    assert torch.equal(x.grad, grad * inside)  # type: ignore[arg-type]
    assert torch.equal(step.grad, (grad * slope * torch.rsqrt(high * x.numel())).sum())  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [AbsMean(), AbsMean("median"), DeepShiftQ()], ids=str)
def test_straight_through_gradients(config: AbsMean) -> None:
    w = W0.clone().requires_grad_()
    grad = torch.arange(8.0).reshape(2, 4)
    config.weight_quantizer(w).fake_quantize(w).backward(grad)
    assert torch.equal(w.grad, grad)  # type: ignore[arg-type]


def test_sign_gradient_is_reste_times_the_scale() -> None:
    w = (2 * W0).requires_grad_()
    grad = torch.arange(1.0, 9.0).reshape(2, 4)
    quantizer = Sign().weight_quantizer(w)
    quantizer.set_progress(1.0)
    quantizer.fake_quantize(w).backward(grad)
    size = w.detach().abs().numpy()
    power = np.where(size <= 0.1, 0.1 ** (1 / 3) / 0.1, np.maximum(size, 0.1) ** (-2 / 3) / 3)
    slope = np.where(size > 1.5, 0, power)
    expected = grad.numpy() * slope * np.array([[1.225], [0.4]])
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-5)


def test_threshold_gradient_is_minus_the_sum_of_the_signs_gradient() -> None:
    x = torch.tensor([[0.3, -0.2], [2.0, 0.05]], requires_grad=True)
    quantizer = Threshold().activation_quantizer(nn.Linear(2, 1))
    quantizer(x)
    quantizer.threshold.data.copy_(torch.tensor([0.1, 0.0]))
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    quantizer.fake_quantize(x).backward(grad)
    expected = grad * reste_slope(x.detach() - quantizer.threshold.detach(), 1.0)
    assert torch.equal(x.grad, expected)  # type: ignore[arg-type]
    assert torch.equal(quantizer.threshold.grad, -expected.sum(dim=0))
    assert torch.equal(reste_sign(torch.zeros(1), 1.0), torch.ones(1))


# ---- configuration errors ----


def test_configurations_validate_themselves() -> None:
    for make in (
        lambda: LearnedStep(9),
        lambda: LearnedStep(8, PerChannel(1)),
        lambda: LearnedStep(8, initial="largest"),  # type: ignore[arg-type]
        lambda: AbsMean("mode"),  # type: ignore[arg-type]
        lambda: LearnedStep(8, PerChannel(0)).activation_quantizer(nn.Linear(1, 1)),
    ):
        with pytest.raises(QuantizationError):
            make()
