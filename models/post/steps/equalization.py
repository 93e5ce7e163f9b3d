"""Cross-layer equalization: the ranges of two layers' channels are made alike, and the model in float stays the same.

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.1. For layers
W1, b1 and W2 with nothing but positively homogeneous functions between them, channel i of the first is divided and that
of the second multiplied by s_i = sqrt(r1_i / r2_i), where r1_i = max |row i of W1| and r2_i = max |column i of W2|
(eq. 11); both ranges are then sqrt(r1_i r2_i). Over chains of pairs this is repeated until nothing changes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError
from subbyte.models.options import Count
from subbyte.models.post.calibration import Batches
from subbyte.models.post.scaled_pairs import scaled_pairs
from subbyte.models.post.steps.register import step
from subbyte.models.quant import QuantizedProduct, Recipe, quantized_layers

CONVERGED = 1e-3  # largest |s - 1| of a sweep


@step("equalization", source="Nagel et al., Data-Free Quantization, 2019, eq. 11", needs=(), changes="ranges")
def equalization(model: nn.Module, batches: Batches, recipe: Recipe, *, sweeps: Count = 20) -> nn.Module:
    """ranges of channels made alike between layers with ReLU between them; the model in float stays the same

    A batch norm that follows the first layer alone takes the factor, and r1_i is that of the weights with it. Raises
    QuantizationError where the model has no such pair of layers.
    """
    layers = quantized_layers(model)
    found = [(layers[pair.first], layers[pair.second]) for pair in scaled_pairs(model, batches[0])]
    pairs = [(first, second) for first, second in found if _takes_factor(first)]
    if not pairs:
        raise QuantizationError(
            "step 'equalization': no two layers have only ReLU, pooling and a batch norm of their own between them; "
            "leave it out"
        )
    with torch.no_grad():
        for _ in range(sweeps):
            if max(_equalize(first, second) for first, second in pairs) < CONVERGED:
                break
    return model


def _equalize(first: QuantizedProduct, second: QuantizedProduct) -> float:
    """Scale the channels between two layers; the largest |s - 1|."""
    norm: Any = first.batch_norm
    rows = first.latent_weight().flatten(1).abs().amax(dim=1)
    if norm is not None:
        rows = rows * norm.factor_and_shift()[0].abs().float().to(rows.device)
    weight = second.latent_weight()
    columns = _columns(second, weight).amax(dim=1)
    s = torch.where((rows > 0) & (columns > 0), torch.sqrt(rows / columns), 1.0)
    _divide(first, norm, s)
    weight.mul_(_over_inputs(second, s, weight.dim()))
    return float((s - 1).abs().max())


def _divide(layer: QuantizedProduct, norm: Any, s: Tensor) -> None:
    """Divide the output of a layer, or of the batch norm after it, by s [C]."""
    if norm is not None:
        norm.weight.div_(s)
        norm.bias.div_(s)
        return
    weight = layer.latent_weight()
    weight.div_(s.reshape(-1, *[1] * (weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.div_(s)


def _takes_factor(layer: QuantizedProduct) -> bool:
    norm: Any = layer.batch_norm
    return norm is None or bool(norm.affine)


def _columns(layer: QuantizedProduct, weight: Tensor) -> Tensor:
    """|weights| of each input channel, [input channels, weights]."""
    if _is_depthwise(layer):
        return weight.abs().reshape(cast(Any, layer).in_channels, -1)
    return weight.abs().movedim(1, 0).flatten(1)


def _over_inputs(layer: QuantizedProduct, s: Tensor, axes: int) -> Tensor:
    """s [input channels] so that it broadcasts against the weight."""
    if _is_depthwise(layer):
        each = cast(Any, layer).out_channels // len(s)
        return s.repeat_interleave(each).reshape(-1, *[1] * (axes - 1))
    return s.reshape(1, -1, *[1] * (axes - 2))


def _is_depthwise(layer: Any) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups > 1
