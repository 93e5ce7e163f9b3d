"""Eval mode equals integer arithmetic in NumPy bit for bit, and survives copies, checkpoints and autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from integer_sums import conv2d, matmul
from torch import Tensor, nn

from subbyte.dialect.function import output_shapes
from subbyte.formats import PerGroup, reference
from subbyte.models.quant import (
    QuantizedProduct,
    exporting,
    fake_quantized,
    get_scheme,
    quantize,
    quantized_layers,
    set_progress,
)

Float32 = npt.NDArray[np.float32]

SCHEMES = ["int8", "int4", "ternary", "ternary-median", "binary", "pow2", "dorefa"]


class Small(nn.Module):
    """What quantized networks are made of: strides, groups, padding, a residual, norms linked or not, both pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=(1, 2))
        self.norm2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, (3, 4), padding="same", groups=4, dilation=(1, 2))
        self.norm3 = nn.BatchNorm2d(16, affine=False)
        self.pool = nn.AvgPool2d(2)
        self.globe = nn.AdaptiveAvgPool2d(1)
        self.linear1 = nn.Linear(16, 12, bias=False)
        self.norm4 = nn.BatchNorm1d(12)
        self.linear2 = nn.Linear(12, 9)
        self.linear3 = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = torch.relu(self.norm3(self.conv3(x) + x))
        x = self.globe(self.pool(x)).flatten(1)
        x = torch.relu(self.norm4(self.linear1(x)))
        result: Tensor = self.linear3(torch.relu(self.linear2(x)))
        return result


def trained(make: Callable[[], nn.Module], scheme: str, shape: tuple[int, ...], **options: object) -> nn.Module:
    """A quantized model with statistics, steps and norms away from where they start, in eval mode."""
    torch.manual_seed(0)
    model = quantize(make(), get_scheme(scheme, **options), example=torch.zeros(2, *shape))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, *shape)).square().mean().backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    return model.eval()


# ---- the same network in NumPy, from parameters alone ----


def codes_of(module: nn.Module, x: Float32) -> tuple[npt.NDArray[np.int32], np.float32, Float32 | None]:
    """Codes, static step and per-token steps of the quantizer of a module's input."""
    quantizer = module.activation_quantizer
    if hasattr(quantizer, "threshold"):
        return reference.binarize(x, quantizer.threshold.detach().numpy()), np.float32(1), None
    if not hasattr(quantizer, "step"):
        codes, steps = reference.quantize_per_token(x)
        return codes, np.float32(1), steps
    step = np.float32(quantizer.step.item())
    low, high = quantizer.format.levels.values[[0, -1]]
    inverse = np.float32(1) / step if hasattr(quantizer, "change") else np.float32(high)  # DoReFa's step is 1 / high
    return reference.quantize(x, inverse, low, high), step, None


def sums(layer: QuantizedProduct, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The exact integer sums of a layer, channels first."""
    levels = layer.low_bit_weight().levels()
    if isinstance(layer, nn.Linear):
        return matmul(codes, levels)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    one_dimensional = isinstance(layer, nn.Conv1d)
    (top, left), (bottom, right) = (
        tuple([0] * one_dimensional + list(p))
        for p in layer.pads()  # type: ignore[operator]
    )
    stride, dilation = (tuple([1] * one_dimensional + list(p)) for p in (layer.stride, layer.dilation))
    if one_dimensional:
        codes, levels = codes[:, :, None], levels[:, :, None]
    out = conv2d(
        codes.transpose(0, 2, 3, 1),
        levels.transpose(0, 2, 3, 1),
        stride,  # type: ignore[arg-type]
        (top, left, bottom, right),
        dilation,  # type: ignore[arg-type]
        layer.groups,
        pad_value=1 if hasattr(layer.activation_quantizer, "threshold") else 0,
    ).transpose(0, 3, 1, 2)
    return out[:, :, 0] if one_dimensional else out


def affine(norm: nn.BatchNorm2d) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    mean, var = norm.running_mean.numpy().astype(float), norm.running_var.numpy().astype(float)  # type: ignore[union-attr]
    factor = 1 / np.sqrt(var + norm.eps)
    if norm.affine:
        factor = factor * norm.weight.detach().numpy().astype(float)
    shift = -mean * factor
    return factor, shift + norm.bias.detach().numpy().astype(float) if norm.affine else shift


def product(layer: QuantizedProduct, x: Float32, norm: nn.Module | None = None) -> Float32:
    """A quantized layer and the batch norm after it, from docs/onnx-dialect.md."""
    codes, step, steps = codes_of(layer, x)
    packed = layer.low_bit_weight()
    scale = np.float64(step) * packed.scale.astype(np.float64) * np.ones(packed.shape[0])
    bias = None if layer.bias is None else layer.bias.detach().numpy().astype(np.float64)
    if norm is not None:
        factor, shift = affine(norm)  # type: ignore[arg-type]
        scale, bias = scale * factor, shift if bias is None else bias * factor + shift
    shape = (1, -1, *[1] * (x.ndim - 2)) if not isinstance(layer, nn.Linear) else (-1,)
    y = sums(layer, codes).astype(np.float32)
    if steps is not None:
        y = y * steps
    y = y * scale.astype(np.float32).reshape(shape)
    return y if bias is None else y + bias.astype(np.float32).reshape(shape)


def in_numpy(m: Small, x: Float32) -> Float32:
    def relu(values: Float32) -> Float32:
        return np.maximum(values, np.float32(0))

    layers = quantized_layers(m)
    x = relu(product(layers["conv1"], x, m.norm1))
    x = relu(product(layers["conv2"], x, m.norm2))
    x = product(layers["conv3"], x) + x
    factor, shift = (v.astype(np.float32).reshape(1, -1, 1, 1) for v in affine(m.norm3))
    x = relu(x * factor + shift)
    codes, step, _ = codes_of(m.pool, x)
    b, c, h, w = codes.shape
    windows = codes[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2).sum(axis=(3, 5))
    x = windows.astype(np.float32) * np.float32(np.float64(step) / 4)
    codes, step, _ = codes_of(m.globe, x)
    total = codes.sum(axis=(2, 3)).astype(np.float32)
    x = total * np.float32(np.float64(step) / (x.shape[2] * x.shape[3]))
    x = relu(product(layers["linear1"], x, m.norm4))
    x = relu(product(layers["linear2"], x))
    return product(layers["linear3"], x)


# ---- exactness ----


@pytest.mark.parametrize("keep", [8, None])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_eval_equals_numpy_bit_for_bit(scheme: str, keep: int | None) -> None:
    model = trained(Small, scheme, (3, 9, 11), keep=keep)
    assert isinstance(model, Small)
    x = torch.randn(4, 3, 9, 11)
    with torch.no_grad():
        got = model(x).numpy()
        first = model.norm1(model.conv1(x)).numpy()
    assert np.array_equal(first, product(quantized_layers(model)["conv1"], x.numpy(), model.norm1))
    assert np.array_equal(got, in_numpy(model, x.numpy()))
    assert np.ptp(got) > 0


@pytest.mark.parametrize("scheme", ["int4", "ternary", "pow2"])
def test_per_token_activations_equal_numpy(scheme: str) -> None:
    model = trained(lambda: nn.Sequential(nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3)), scheme, (5, 7), keep=None,
                    activations="token")  # fmt: skip
    x = torch.randn(2, 5, 7)
    with torch.no_grad():
        hidden = model[1](model[0](x))
        got = model[2](hidden)
    assert np.array_equal(model[0](x).detach().numpy(), product(model[0], x.numpy()))
    assert np.array_equal(got.numpy(), product(model[2], hidden.numpy()))


@pytest.mark.parametrize("scheme", ["int8", "binary"])
def test_conv1d_and_samples_without_a_batch_axis(scheme: str) -> None:
    model = trained(
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1, stride=2), nn.BatchNorm1d(4)), scheme, (2, 9), keep=None
    )
    x = torch.randn(3, 2, 9)
    with torch.no_grad():
        got = model(x)
        single = model[0](x[1])
    assert np.array_equal(got.numpy(), product(model[0], x.numpy(), model[1]))
    assert torch.equal(single, got[1])


def test_weights_by_group_equal_the_dequantized_product_within_float_rounding() -> None:
    model = trained(lambda: nn.Sequential(nn.Linear(40, 6), nn.BatchNorm1d(6)), "int4", (40,), keep=None, group_size=16)
    layer = quantized_layers(model)["0"]
    assert layer.low_bit_weight().granularity == PerGroup(16)
    x = torch.randn(5, 40)
    codes, step, _ = codes_of(layer, x.numpy())
    factor, shift = affine(model[1])  # type: ignore[arg-type]
    values = layer.low_bit_weight().dequantize().astype(np.float64)
    expected = (codes @ values.T) * (step * factor) + layer.bias.detach().numpy() * factor + shift  # type: ignore[union-attr]
    largest = np.abs(codes).max() * np.abs(values).max() * 40 * np.abs(step * factor).max()
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= 40 * 2**-24 * largest


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_trained_graph_gives_the_same_up_to_float_rounding(scheme: str) -> None:
    model = trained(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), scheme, (3, 5, 5), keep=None
    )
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        integers = model(x)
        with fake_quantized(model):
            floats = model(x)
        assert torch.equal(model(x), integers)
    torch.testing.assert_close(floats, integers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8", "binary"])
def test_same_padding_puts_the_odd_place_after(scheme: str) -> None:
    model = quantize(
        nn.Sequential(nn.Conv2d(2, 4, (2, 4), padding="same", dilation=(3, 1))), get_scheme(scheme, keep=None)
    )
    x = torch.randn(2, 2, 6, 7)
    model.eval()
    with torch.no_grad():
        got = model(x)
    assert got.shape == (2, 4, 6, 7)
    assert np.array_equal(got.numpy(), product(model[0], x.numpy()))


# ---- copies and checkpoints ----


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copy_and_state_dict_give_the_same_bits(scheme: str) -> None:
    model = trained(Small, scheme, (3, 9, 11))
    x = torch.randn(4, 3, 9, 11)
    with torch.no_grad():
        expected = model(x)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        model.eval()
        assert not torch.equal(model(x), expected)
        assert torch.equal(copied(x), expected)
        assert torch.equal(copied.train().eval()(x), expected)  # from the copy's own parameters and norms
        loaded = quantize(Small(), scheme, example=torch.zeros(2, 3, 9, 11)).eval()
        loaded.load_state_dict(copied.state_dict())
        assert torch.equal(loaded(x), expected)
        model.load_state_dict(copied.state_dict())  # into a model whose constants were made already
        assert torch.equal(model(x), expected)


def test_constants_are_not_saved_and_training_forgets_them() -> None:
    model = trained(Small, "int4", (3, 9, 11))
    x = torch.randn(2, 3, 9, 11)
    before = set(model.state_dict())
    with torch.inference_mode():
        first = model(x)
    assert set(model.state_dict()) == before
    assert not any("levels" in key or "output_scale" in key or "inverse" in key for key in before)
    model.train()
    with torch.no_grad():
        model.conv2.parametrizations.weight.original.neg_()  # type: ignore[union-attr]
    model.eval()
    result = model(x)  # with gradients, after constants were made in inference mode
    assert not torch.equal(result, first)


def test_autocast_does_not_touch_the_integers() -> None:
    model = trained(Small, "int8", (3, 9, 11))
    x = torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        expected = model.conv1(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.conv1(x), expected)


# ---- export ----


def nodes_of(model: nn.Module, x: Tensor) -> list[str]:
    with exporting(output_shapes, model), torch.no_grad():
        program = torch.export.export(model, (x,))
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            symbolic = "onnx_symbolic" in str(node.target)
            found.append(f"{node.kwargs['domain']}::{node.args[1]}" if symbolic else str(node.target))
    return found


@pytest.mark.parametrize(
    ("scheme", "decoder", "activation"),
    [
        ("int4", "DecodeInt4", "Quantize"),
        ("ternary", "DecodeTernary", "Quantize"),
        ("binary", "DecodeBinary", "Binarize"),
        ("pow2", "DecodePow2_4", "Quantize"),
    ],
)
def test_export_holds_the_dialect(scheme: str, decoder: str, activation: str) -> None:
    nodes = nodes_of(trained(Small, scheme, (3, 9, 11)), torch.randn(1, 3, 9, 11))
    assert nodes.count(f"subbyte::{decoder}") == 4
    assert nodes.count("subbyte::DecodeInt8") == 2
    assert nodes.count(f"subbyte::{activation}") >= 4
    assert nodes.count("aten.round.default") == 7  # six products and the window pool
    assert nodes.count("aten.batch_norm.default") == 0
    assert nodes.count("aten.pad.default") == (2 if scheme == "binary" else 0)
    assert nodes.count("aten.sum.dim_IntList") == 1


def test_export_of_groups_and_tokens() -> None:
    model = trained(
        lambda: nn.Sequential(nn.Linear(40, 6)), "int4", (40,), keep=None, group_size=16, activations="token"
    )
    nodes = nodes_of(model, torch.randn(2, 40))
    assert "subbyte::DequantizeInt4" in nodes
    assert "subbyte::QuantizePerToken" in nodes
    assert "aten.round.default" not in nodes


def test_progress_reaches_both_quantizers() -> None:
    model = trained(lambda: nn.Sequential(nn.Linear(4, 4)), "binary", (4,), keep=None)
    layer = quantized_layers(model)["0"]
    set_progress(model, 1.0)
    assert layer.weight_quantizer.order == pytest.approx(3)  # type: ignore[union-attr]
    assert layer.activation_quantizer.order == pytest.approx(3)  # type: ignore[union-attr]
