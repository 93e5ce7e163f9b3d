"""Steps of post-training quantization: each against its formula or a property, their order, and their register."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from float_nets import inputs_and_labels, trained
from torch import Tensor, nn

from subbyte.errors import QuantizationError, RegistrationError, UnknownNameError, UsageError
from subbyte.models import create, quantize
from subbyte.models.options import Count
from subbyte.models.post import Batches, Calibration, calls_of, list_steps, post_train, step
from subbyte.models.post.float_values import in_float
from subbyte.models.post.reporting import reporting
from subbyte.models.post.scaled_pairs import scaled_pairs
from subbyte.models.post.steps.adaround import rectified_sigmoid
from subbyte.models.quant import Recipe, Rule, as_recipe, combine, fake_quantized, quantized_layers

W4A8 = as_recipe(combine("int4", "int8"))


def image_batches(count: int = 4, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]


def convolutions(seed: int = 0) -> nn.Module:
    """Two convolutions with batch norms that have seen data, and a Linear."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the statistics of all batches, as after a long training
        for batch in image_batches():
            net.train()(batch)
        for norm in norms:
            norm.momentum = 0.1
    return net.eval()


def applied(model: nn.Module, steps: Sequence[str], batches: Batches, recipe: Recipe = W4A8) -> nn.Module:
    return post_train(copy.deepcopy(model), batches, recipe, Calibration(), calls_of(steps))


# ---- the float model within the quantized one ----


def test_the_quantized_model_in_float_is_the_float_model() -> None:
    model, (x, *_) = convolutions(), image_batches()
    quantized = applied(model, [], image_batches(), as_recipe(combine("binary", "binary")))
    with torch.no_grad(), in_float(quantized):
        torch.testing.assert_close(quantized(x), model(x))
    assert not torch.allclose(quantized(x), model(x), rtol=0.01)


# ---- batch norms ----


def test_batch_norms_get_the_statistics_of_the_quantized_model() -> None:
    batches = image_batches()
    model = applied(convolutions(), ["batch-norm"], batches)
    layer, norm = model[0], model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad(), fake_quantized(model):
        outputs = [layer(batch) for batch in batches]
    means = torch.stack([y.mean(dim=(0, 2, 3)) for y in outputs]).mean(dim=0)
    variances = torch.stack([y.transpose(0, 1).flatten(1).var(dim=1) for y in outputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1
    assert not norm.training


def test_batch_norm_repairs_a_shift_that_binary_weights_make() -> None:
    """The second norm's input has mean 0 and variance 1 again, as the float model's has."""
    batches = image_batches(8, 64)
    errors = {}
    for steps in ((), ("batch-norm",)):
        model = applied(convolutions(), steps, batches, as_recipe(combine("binary", "int8")))
        with torch.no_grad(), fake_quantized(model):
            normed = torch.cat([model[:5](batch) for batch in batches])
        with torch.no_grad():
            expected = torch.cat([convolutions()[:5](batch) for batch in batches])
        errors[steps] = float((normed.mean(dim=(0, 2, 3)) - expected.mean(dim=(0, 2, 3))).abs().max())
    assert errors["batch-norm",] < 0.2 * errors[()]


# ---- bias correction ----


def test_bias_correction_leaves_no_difference_of_means() -> None:
    """Of each channel, over samples and positions; without a bias, relative to the mean of the batch norm."""
    batches, float_model = image_batches(), convolutions()
    for steps, near in (((), False), (("bias-correction",), True)):
        model = applied(float_model, steps, batches)
        for name in quantized_layers(model):
            with torch.no_grad(), fake_quantized(model):
                found = _mean(model, name, batches)
            difference = (found - _mean(float_model, name, batches)).abs().max()
            assert (float(difference) < 1e-5) == near, name


def _mean(model: nn.Module, name: str, batches: Batches) -> Tensor:
    layers, outputs = dict(model.named_modules()), []
    handle = layers[name].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    mean = torch.cat(outputs).transpose(0, 1).flatten(1).double().mean(dim=1)
    return mean - layers["1"].running_mean if name == "0" else mean


def test_a_layer_that_has_no_place_for_a_correction_is_reported() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    with reporting(False) as report:
        applied(model, ["bias-correction"], image_batches())
    assert report.notes == ["'1' has no bias and no batch norm of its own: bias-correction leaves it as it is"]


# ---- equalization ----


def pairs_of(name: str) -> list[tuple[str, str]]:
    model = quantize(create(name, channels=1, size=8).eval(), "int8", example=image_batches()[0])
    return [(pair.first, pair.second) for pair in scaled_pairs(model, image_batches()[0])]


def test_pairs_are_found_by_what_reads_a_layer() -> None:
    assert pairs_of("mlp") == [("1", "3"), ("3", "5")]
    # Not the stem, nor a block's last convolution: shortcuts read them, too.
    assert pairs_of("resnet8") == [(f"stages.{n}.0.conv1", f"stages.{n}.0.conv2") for n in range(3)]
    depthwise = pairs_of("ds_cnn")
    assert len(depthwise) == 9  # every convolution, and the Linear after the pooling


@pytest.mark.parametrize(
    "between", [nn.ReLU6(), nn.GELU(), nn.Sigmoid(), nn.Softmax(1), nn.LayerNorm(16), nn.BatchNorm1d(16, affine=False)]
)
def test_what_does_not_commute_with_a_factor_makes_no_pair(between: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), between, nn.Linear(16, 4)).eval()
    with pytest.raises(QuantizationError, match="leave it out"):
        applied(model, ["equalization"], image_batches())


@pytest.mark.parametrize("name", ["mlp", "resnet8", "ds_cnn"])
def test_equalization_makes_ranges_alike_and_keeps_the_float_model(name: str) -> None:
    torch.manual_seed(2)
    model, (x, *_) = create(name, channels=1, size=8), image_batches()
    model.train()(x)
    quantized = quantize(copy.deepcopy(model.eval()), "int8", example=x)
    (equalization,) = calls_of(["equalization"])
    equalization(quantized, [x], W4A8)
    with torch.no_grad(), in_float(quantized):
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-4, atol=1e-4)
    layers = quantized_layers(quantized)
    for pair in scaled_pairs(quantized, x):
        first, second = layers[pair.first], layers[pair.second]
        rows = first.weight_quantizer.latent().flatten(1).abs().amax(dim=1)
        if first.batch_norm is not None:
            rows = rows * first.batch_norm.factor_and_shift()[0].abs().float()
        weight = second.weight_quantizer.latent().abs()
        columns = weight.flatten(1).amax(dim=1) if weight.shape[1] == 1 else weight.movedim(1, 0).flatten(1).amax(dim=1)
        torch.testing.assert_close(rows, columns, rtol=5e-3, atol=0)


def test_equalization_saves_a_model_whose_channels_have_very_different_ranges() -> None:
    """A channel of the first layer is 1,000 times as large and the second layer's weights of it as much smaller."""
    model, batches = trained(0, hidden=[32, 32]), list(inputs_and_labels()[0][:256].split(64))
    factor = torch.logspace(-2, 2, 32)
    with torch.no_grad():
        model[1].weight.mul_(factor.unsqueeze(1))
        model[1].bias.mul_(factor)
        model[3].weight.div_(factor)
    errors = [_error(applied(model, steps, batches), model) for steps in ((), ("equalization",))]
    assert errors[1] < 0.1 * errors[0]


# ---- adaround ----


def _error(quantized: nn.Module, model: nn.Module) -> float:
    """Of the logits on the test set of digits: mean squared difference over mean square."""
    x, _ = inputs_and_labels(test=True)
    with torch.no_grad():
        expected = model(x)
        return float((quantized(x) - expected).square().mean() / expected.square().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adaround_loses_less_than_rounding_to_nearest(seed: int) -> None:
    """W4A8: the error of the logits on samples that were not calibrated on."""
    model, batches = trained(seed, hidden=[24]), list(inputs_and_labels()[0][:512].split(64))
    nearest = applied(model, [], batches)
    rounded = applied(model, ["adaround(iterations=200, learning_rate=0.1)"], batches)
    assert _error(rounded, model) < 0.5 * _error(nearest, model)
    for name, layer in quantized_layers(rounded).items():
        other = quantized_layers(nearest)[name].weight_quantizer
        assert torch.equal(layer.weight_quantizer.scales(), other.scales())
        w, scale = other.latent(), other.expand(other.scales(), other.latent())
        codes = layer.weight_quantizer.codes(layer.weight_quantizer.latent())
        down = torch.floor(w / scale)
        assert bool(((codes == down.clamp(-8, 7)) | (codes == (down + 1).clamp(-8, 7))).all())
        assert bool((codes != other.codes(w)).any())


def test_adaround_is_the_same_in_every_run_and_another_with_another_seed() -> None:
    model, batches = trained(0, hidden=[12]), list(inputs_and_labels()[0][:128].split(64))
    states = [applied(model, [f"adaround(iterations=40, seed={seed})"], batches).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_one_weight_is_rounded_as_the_outputs_say() -> None:
    """Inputs of mean 1: two weights of 0.4 steps give 0.8, so that one must be up; by nearest both are down."""
    layer = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[7.0, -7.0, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]]))
    x = 1 + 0.01 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    quantized = post_train(
        layer,
        [x],
        as_recipe([Rule(combine("int4", "int8"))]),
        Calibration("mse", "min-max"),
        calls_of(["adaround(iterations=200)"]),
    )
    weights = quantized_layers(quantized)["0"].weight_quantizer
    codes = weights.codes(weights.latent()).flatten()
    assert float(weights.scales().flatten()[0]) == 1.0
    assert sorted(codes[2:].tolist()) in ([0.0] * 4 + [1.0] * 2, [0.0] * 3 + [1.0] * 3)  # 2.4 of 6
    assert codes[:2].tolist() == [7.0, -7.0]


def test_the_rectified_sigmoid_reaches_both_ends() -> None:
    h = rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    torch.testing.assert_close(h, torch.tensor([0.0, 0.5, 1.0]))


def test_adaround_needs_weights_with_a_step() -> None:
    batches = image_batches()
    with pytest.raises(QuantizationError, match="no layer has integer weights"):
        applied(convolutions(), ["adaround"], batches, as_recipe(combine("ternary", "int8")))
    mixed = as_recipe([Rule("int8", match="first"), Rule(combine("ternary", "int8"))])
    with reporting(False) as report:
        applied(convolutions(), ["adaround(iterations=2)"], batches, mixed)
    assert [note.split(" ")[0] for note in report.notes] == ["'3'", "'8'"]


# ---- their order, and the register ----


def test_the_order_of_steps_is_checked() -> None:
    right = ["equalization", "adaround", "batch-norm", "bias-correction"]
    assert list_steps() == right
    assert [call.step.name for call in calls_of(right)] == right
    for first, second in (("adaround", "equalization"), ("bias-correction", "batch-norm"), ("batch-norm", "adaround")):
        with pytest.raises(UsageError, match=f"ask for {second}, {first}"):
            calls_of([first, second])
    with pytest.raises(UsageError, match="asked for twice"):
        calls_of(["adaround", "adaround(seed=1)"])
    with pytest.raises(UnknownNameError, match="Did you mean 'iterations'"):
        calls_of(["adaround(iteration=1)"])
    with pytest.raises(UsageError, match="expected a number in"):
        calls_of(["adaround(iterations=0)"])


def test_all_steps_together() -> None:
    batches = image_batches()
    steps = [name.replace("adaround", "adaround(iterations=50)") for name in list_steps()]
    model = applied(convolutions(), steps, batches)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    with torch.no_grad():
        expected, found = convolutions()(batches[0]), model(batches[0])
    assert float((found - expected).norm() / expected.norm()) < 0.3


def test_steps_of_a_model_with_one_half_quantized() -> None:
    """Weights alone: all steps, adaround on the inputs as they are; inputs alone: what needs no quantized weights."""
    model, batches = convolutions(), image_batches()
    weights, inputs = as_recipe(combine("int4")), as_recipe(combine(activations="int4"))
    assert _error(applied(model, ["adaround(iterations=100)"], batches, weights), model) < _error(
        applied(model, [], batches, weights), model
    )
    for recipe, steps in ((weights, ["equalization", "bias-correction"]), (inputs, ["equalization", "batch-norm"])):
        assert _error(applied(model, steps, batches, recipe), model) < 0.5


def test_an_incomplete_step_is_refused() -> None:
    def whole(model: nn.Module, batches: Batches, recipe: Recipe, *, rounds: Count = 3) -> nn.Module:
        """does nothing"""
        return model

    def bare(model: nn.Module, batches: Batches, recipe: Recipe) -> nn.Module:
        return model

    def positional(model: nn.Module, batches: Batches, recipe: Recipe, rounds: Count = 3) -> nn.Module:
        """has an option by position"""
        return model

    def untyped(model: nn.Module, batches: Batches, recipe: Recipe, *, rounds=3) -> nn.Module:  # type: ignore[no-untyped-def]
        """has an option without a type"""
        return model

    def gives_nothing(model: nn.Module, batches: Batches, recipe: Recipe) -> None:
        """gives nothing"""

    cases = (
        (bare, {}, "no summary"),
        (positional, {}, "'rounds' is not after"),
        (untyped, {}, "'rounds' has no default or no type"),
        (gives_nothing, {}, "annotated to return"),
        (whole, {"source": " "}, "no source"),
        (whole, {"changes": "codes"}, "expected one of ranges, weights"),
        (whole, {"needs": ()}, r"needs=\(Calibration,\)"),
        (whole, {"needs": (int,)}, "expected \\(\\) or"),
    )
    for function, wrong, words in cases:
        parts = {"source": "nobody", "needs": (Calibration,), "changes": "weights", **wrong}
        with pytest.raises(RegistrationError, match=words):
            step("tried", **parts)(function)  # type: ignore[arg-type]
    with pytest.raises(RegistrationError, match="registered already"):
        step("adaround", source="nobody", needs=(Calibration,), changes="weights")(whole)
    assert "tried" not in list_steps()
