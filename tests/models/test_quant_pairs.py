"""Every weight quantizer with every activation quantizer of the registers: trained a step, exported, run elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import subbyte
from subbyte.models.quant import Rule, combine, quantize, quantized_layers, register_activations, register_weights

WEIGHTS = sorted(register_weights.makers)
ACTIVATIONS = {
    **{f"{name}": (name, {}) for name in sorted(register_activations.makers)},
    "int8_per_token": ("int8", {"per": "token"}),
}


class Net(nn.Module):
    """A layer for each activation quantizer, all of one input; their results are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(12, 3) for name in ACTIVATIONS})

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers.values()], dim=1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_weight_quantizer_with_every_activation_quantizer(weights: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 12)
    rules = [
        Rule(combine(weights, {"name": name, **options}), name=f"layers.{key}")
        for key, (name, options) in ACTIVATIONS.items()
    ]
    model = quantize(Net(), rules, example=x)
    assert set(quantized_layers(model)) == {f"layers.{key}" for key in ACTIVATIONS}
    for name, layer in quantized_layers(model).items():
        assert layer.weight_quantizer.format.name == combine(weights, "int8").weights.format_name, name  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = {name: layer.weight_quantizer.latent().clone() for name, layer in quantized_layers(model).items()}
    model.train()(x).square().sum().backward()
    optimizer.step()
    assert all(
        not torch.equal(layer.weight_quantizer.latent(), before[n]) for n, layer in quantized_layers(model).items()
    )
    report = subbyte.export(model.eval(), tmp_path / "t.onnx", example=x[:1], inputs=x)
    assert report.verification is not None
    assert report.verification.inexact == ()
    session = onnxruntime.InferenceSession(tmp_path / "t.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for row in x[:4]:
            (found,) = session.run(None, {session.get_inputs()[0].name: row[None].numpy()})
            expected = model(row[None]).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
