"""Layers of which only the weights or only the input is quantized: trained, exported, compiled, and said to be so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subbyte
from subbyte.errors import QuantizationError
from subbyte.export import inspect
from subbyte.models.layers.gru import GRUCell
from subbyte.models.layers.streaming_convolution import StreamingConv1d
from subbyte.models.quant import combine, fake_quantized, quantize, quantized_layers, set_progress
from subbyte.models.quant.pooling import QuantizedAveragePool

WEIGHTS: dict[str, Mapping[str, Any]] = {
    "int4": {"weights": "int4"},
    "int4/16": {"weights": "int4", "group_size": 16},
    "ternary": {"weights": "ternary"},
    "binary": {"weights": "binary"},
    "pow2_4": {"weights": "pow2"},
    "odd4": {"weights": "dorefa"},
}
ACTIVATIONS: dict[str, Mapping[str, Any]] = {
    "int8": {"activations": "int8"},
    "int8 per token": {"activations": "int8", "per": "token"},
    "binary": {"activations": "binary"},
    "uint4": {"activations": "dorefa"},
}
HALVES = {**{f"{name} weights": half for name, half in WEIGHTS.items()}, **ACTIVATIONS}


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(half: Mapping[str, Any]) -> nn.Module:
    """Padding, a linked norm, pools and a Linear, after three steps; in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    quantize(model, combine(**half), example=images())
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    return model.eval()


def in_float64(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer without a linked norm must give: its dequantized input by its dequantized weights."""
    quantizer, weights = layer.activation_quantizer, layer.weight_quantizer
    value = x if quantizer is None else quantizer.fake_quantize(x)
    weight = layer.weight if weights is None else torch.from_numpy(weights.export().dequantize())
    return nn.functional.linear(value.double(), weight.double(), layer.bias.double())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("name", HALVES)
def test_training_moves_all_and_eval_is_the_trained_product(name: str) -> None:
    model, x = trained(HALVES[name]), torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    layer = quantized_layers(model)["7"]
    assert (layer.weight_quantizer is None) == (name in ACTIVATIONS) == (layer.activation_quantizer is not None)
    assert not layer.sums_integers
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), in_float64(layer, x), rtol=1e-5, atol=1e-5)
        integers = model(images())
        with fake_quantized(model):
            torch.testing.assert_close(model(images()), integers, rtol=1e-4, atol=1e-4)
    row = next(row for row in model.quantization_report if row.layer == "7")  # type: ignore[union-attr]
    assert "float" in (row.weights, row.activations)
    assert (row.activations == "float") == (name not in ACTIVATIONS)


@pytest.mark.parametrize("name", HALVES)
def test_a_state_dict_loads(name: str) -> None:
    model, again = trained(HALVES[name]), trained(HALVES[name])
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
        again.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(again(images()), model(images()))


@pytest.mark.parametrize("name", ["ternary weights", "int4/16 weights", "int8", "binary"])
def test_file_and_bundle_are_within_float_rounding_and_name_what_is_float(name: str, tmp_path: Path) -> None:
    model = trained(HALVES[name])
    found = subbyte.export(model, tmp_path / "m.onnx", example=images(), inputs=images()).verification
    assert found is not None
    assert found.max_error <= 1e-5 * found.largest_output
    assert sum(one.differing for one in found.codes) == 0
    row = inspect(tmp_path / "m.onnx").layers[0]
    formats = ("float32", name) if name in ACTIVATIONS else (name.removesuffix(" weights"), "float32")
    assert (row.weight_format, row.activation_format) == formats
    report = subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", target="host")
    products = [row for row in report.rows if row.kind == "FloatProduct"]
    assert len(products) == 3
    decoded = name == "ternary weights"  # by the kernel; the others have a reason in the report
    assert all((row.fallback is None) == decoded for row in products)
    assert {row.weights for row in products} == ({"ternary"} if decoded else {"float32"})
    with subbyte.load(tmp_path / "m.subbyte") as session, torch.no_grad():
        expected = model(images()[:1]).numpy()
        np.testing.assert_allclose(session.run(images()[:1].numpy()), expected, atol=1e-5 * np.abs(expected).max())


def test_pools_are_quantized_where_inputs_are() -> None:
    def pools(half: Mapping[str, Any]) -> int:
        return sum(isinstance(m, QuantizedAveragePool) for m in trained(half).modules())

    assert (pools(WEIGHTS["int4"]), pools(ACTIVATIONS["int8"])) == (0, 1)


def test_only_weights_of_a_layer_that_reads_a_state() -> None:
    torch.manual_seed(0)
    cell = quantize(GRUCell(3, 4), combine("int8"))
    assert all(layer.activation_quantizer is None for layer in quantized_layers(cell).values())
    cell.eval()
    with torch.no_grad():
        assert bool(cell(torch.randn(2, 3)).isfinite().all())


@pytest.mark.parametrize("half", [WEIGHTS["ternary"], ACTIVATIONS["int8"]])
def test_a_streaming_convolution_equals_the_whole(half: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    stream = StreamingConv1d(nn.Conv1d(2, 3, 3))
    quantize(stream, combine(**half))
    x = torch.randn(1, 2, 8)
    stream.whole(x)
    stream.eval()
    with torch.no_grad():
        pieces = torch.cat([stream(x[..., :5]), stream(x[..., 5:])], dim=-1)
        torch.testing.assert_close(pieces, stream.whole(x), rtol=1e-5, atol=1e-5)


def test_progress_reaches_the_half_that_there_is_and_float_weights_have_no_codes() -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4)), combine(activations="binary"))
    set_progress(model, 1.0)
    (layer,) = quantized_layers(model).values()
    assert layer.activation_quantizer.order == pytest.approx(3)  # type: ignore[union-attr]
    with pytest.raises(QuantizationError, match="weights are float32"):
        layer.low_bit_weight()
