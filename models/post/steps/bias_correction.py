"""Bias correction: what quantization adds to the mean of each output channel is subtracted again."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.post.layer_values import channel_axis, execution_order, see_float, see_quantized
from subbyte.models.post.reporting import note, tracked
from subbyte.models.post.steps.register import step
from subbyte.models.quant import QuantizedProduct, Recipe, quantized_layers


@step(
    "bias-correction",
    source="Nagel et al., Data-Free Quantization, 2019, section 4.2 (empirical, appendix D)",
    needs=(Calibration,),
    changes="biases",
)
def bias_correction(model: nn.Module, batches: Batches, recipe: Recipe) -> nn.Module:
    """b - E[quantized output - float output] of each channel, layer by layer in the order of execution

    The mean is over all samples and positions; the layers before are corrected already. A layer without a bias has it
    in the mean of its batch norm, where one follows it alone; else the layer stays as it is, and the result says so.
    """
    layers = quantized_layers(model)
    calls = execution_order(model, batches[0])
    expected = {name: _Mean(layers[name]) for name in calls}
    see_float(model, batches, {layers[name]: mean.add for name, mean in expected.items()})
    for name in tracked(calls, "bias correction", len(calls)):
        layer = layers[name]
        place = _place(layer)
        if place is None:
            note(f"'{name}' has no bias and no batch norm of its own: bias-correction leaves it as it is")
            continue
        found = _Mean(layer)
        see_quantized(model, batches, layer, found.add, calls[name])
        shift = (found.value() - expected[name].value()).to(place.dtype)
        with torch.no_grad():
            place.add_(shift if place is not layer.bias else -shift)
    return model


def _place(layer: QuantizedProduct) -> Tensor | None:
    """Where the correction goes: the bias, which it is subtracted from, or the mean of the batch norm."""
    if layer.bias is not None:
        return layer.bias
    norm = layer.batch_norm
    return None if norm is None else cast(Tensor, norm.running_mean)


class _Mean:
    """The mean of a layer's output over all axes but its channels, in float64."""

    def __init__(self, layer: QuantizedProduct) -> None:
        self.axis, self.total, self.count = channel_axis(layer), torch.zeros(()), 0

    def add(self, output: Tensor) -> None:
        rows = output.movedim(self.axis, 0).flatten(1).cpu().double()
        self.total = self.total + rows.sum(dim=1)
        self.count += rows.shape[1]

    def value(self) -> Tensor:
        return self.total / max(1, self.count)
