"""How much a model's output changes when one layer alone is quantized: each layer at each scheme, all others in float.

The sensitivity of a layer is the noise that its quantization adds to the output: the sum of (y - y_float)^2 over the
sum of y_float^2, of all elements of all samples. Nothing is trained: quantizers start from the first batch. So Wu et
al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020, order layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from subbyte import formats
from subbyte.errors import QuantizationError
from subbyte.models.quant.recipe import Layer
from subbyte.models.quant.replace_layers import quantized_alone, survey
from subbyte.models.quant.scheme import Scheme, get_scheme
from subbyte.models.quant.sensitivity_table import KIND, VERSION

Measure = Callable[[Sequence[Tensor]], Mapping[str, float]]  # of the outputs for all batches, e.g. {"loss": 0.3}
Track = Callable[[Sequence[tuple[Layer, Scheme]]], Iterable[tuple[Layer, Scheme]]]


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer at one scheme. Where it cannot take the scheme `noise` is None, and `why` says why."""

    layer: str
    scheme: str
    weights: int  # how many
    bits: int  # of a weight's code, 32 in float
    noise: float | None  # of the output, relative to its power
    scores: Mapping[str, float] = field(default_factory=dict)  # what `measure` says, as of the float model
    why: str = ""

    @property
    def decibels(self) -> float | None:
        """The signal-to-noise ratio of the output in dB; infinite where nothing changes."""
        if self.noise is None:
            return None
        return -10 * math.log10(self.noise) if self.noise else math.inf


@dataclass(frozen=True)
class Sensitivities:
    """Every layer that can be quantized at every scheme, in the order of the layers."""

    rows: tuple[LayerSensitivity, ...]
    schemes: tuple[Scheme, ...]
    samples: int
    scores: Mapping[str, float] = field(default_factory=dict)  # of the float model

    def of(self, scheme: str) -> dict[str, LayerSensitivity]:
        """The layers at the scheme of that label."""
        return {row.layer: row for row in self.rows if row.scheme == scheme}

    def table(self, scheme: str) -> dict[str, float]:
        """The noise of each layer at that scheme: what a rule's `sensitivity` is."""
        return {name: row.noise for name, row in self.of(scheme).items() if row.noise is not None}

    def as_data(self) -> dict[str, Any]:
        """As JSON has it, for a rule `{sensitivity: FILE, of: SCHEME, above: ...}` of a recipe."""
        layers = {
            scheme.label: {
                name: {"noise": row.noise, **row.scores} if row.noise is not None else {"noise": None, "why": row.why}
                for name, row in self.of(scheme.label).items()
            }
            for scheme in self.schemes
        }
        return {"kind": KIND, "version": VERSION, "samples": self.samples, "float": dict(self.scores), "of": layers}


def sensitivity(
    model: nn.Module,
    batches: Sequence[Tensor],
    schemes: Sequence[str | Scheme],
    *,
    measure: Measure | None = None,
    track: Track = iter,
) -> Sensitivities:
    """Measure the float `model` on `batches` of inputs [n, ...] with each layer alone at each scheme.

    The model is not changed and computes in eval mode. `measure` makes numbers, such as the loss, of the outputs for
    all batches; `track` goes through what is measured, to show how far it is. The same call gives the same numbers.
    Raises QuantizationError for a model that is quantized, or that has no output other than zeros, or NaN.
    """
    chosen = [get_scheme(scheme) if isinstance(scheme, str) else scheme for scheme in schemes]
    labels = [scheme.label for scheme in chosen]
    if len(set(labels)) != len(labels) or not labels:
        raise QuantizationError(f"schemes to measure are {', '.join(labels) or 'none'}; name each of them once")
    model = copy.deepcopy(model).eval()
    layers = [layer for layer in survey(model, batches[0][:1]) if layer.reason is None]
    reference = _outputs(model, batches)
    power = sum(float(output.double().square().sum()) for output in reference)
    if not (power > 0 and math.isfinite(power)):
        raise QuantizationError("the float model's output is zero everywhere, NaN or infinite; measure another model")
    rows = []
    for layer, scheme in track([(layer, scheme) for layer in layers for scheme in chosen]):
        rows.append(_measured(model, layer, scheme, batches, (reference, power), measure))
    scores = {} if measure is None else measure(reference)
    return Sensitivities(tuple(rows), tuple(chosen), sum(len(batch) for batch in batches), scores)


def _measured(
    model: nn.Module,
    layer: Layer,
    scheme: Scheme,
    batches: Sequence[Tensor],
    compared: tuple[Sequence[Tensor], float],
    measure: Measure | None,
) -> LayerSensitivity:
    reference, power = compared
    bits = 32 if scheme.weights is None else formats.get(scheme.weights.format_name).code_bits
    about = layer.name, scheme.label, cast(Tensor, layer.module.weight).numel(), bits
    try:
        with quantized_alone(model, layer, scheme):
            outputs = _outputs(model, batches)
    except QuantizationError as error:
        return LayerSensitivity(*about, noise=None, why=str(error))
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(outputs, reference, strict=True))
    if not math.isfinite(noise):
        raise QuantizationError(f"with '{layer.name}' at '{scheme.label}' the model's output has NaN or infinity")
    return LayerSensitivity(*about, noise=noise / power, scores={} if measure is None else measure(outputs))


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    wrong = next((output for output in outputs if not isinstance(output, Tensor)), None)
    if wrong is not None:
        raise QuantizationError(f"the model gives a {type(wrong).__name__}, expected one tensor")
    return outputs
