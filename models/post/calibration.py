"""Calibration: the steps of a quantized model from batches of inputs, without training.

The model runs in float over the batches; a sample of what enters each activation quantizer gives its step, by a
calibrator. The steps of weights come from the weights alone. Quantizers that have no step take what they take from a
first batch, or from their weight: thresholds of signs, scales of ternary weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from subbyte.errors import DataError, QuantizationError, UsageError
from subbyte.models.losses.composition import parse_call
from subbyte.models.post.calibrators import get_calibrator
from subbyte.models.post.float_values import in_float
from subbyte.models.post.reporting import note, tracked
from subbyte.models.post.sample import Sample
from subbyte.models.quant.first_batch import FirstBatchQuantizer
from subbyte.models.quant.positive_step import PositiveStep
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer
from subbyte.models.quant.statistics import SMALLEST_STEP, StepOf
from subbyte.models.state import states_kept

Batches: TypeAlias = Sequence[Tensor]  # of inputs [N, ...], held in memory: they are run through the model many times
EXAMPLE = "percentile(percent=99.9)"


@dataclass(frozen=True)
class Calibration:
    """Which calibrators choose the steps: of activations, and of weights.

    Raises UnknownNameError for a name, UsageError for an option that cannot be or a calibrator not for weights.
    """

    activations: str = "mse"  # a calibrator with options: "percentile(percent=99.9)"
    weights: str = "mse"

    def __post_init__(self) -> None:
        calibrator_of(self.activations)
        calibrator_of(self.weights, weights=True)

    def __call__(self, model: nn.Module, batches: Batches) -> nn.Module:
        """Set all steps of a quantized model, in place, and leave it in eval mode.

        Raises DataError for batches that cannot be calibrated with, QuantizationError for NaN within the model.
        """
        check_batches(batches)
        model.eval()
        of_activations, of_weights = calibrator_of(self.activations), calibrator_of(self.weights, weights=True)
        samples = observed(model, batches)
        for name, module in model.named_modules():
            if isinstance(module, WeightQuantizer):
                module.calibrate(of_weights)
            elif isinstance(module, FirstBatchQuantizer) and name in samples:
                module.calibrate(samples[name].rows().to(module.called.device), of_activations)
            if isinstance(module, PositiveStep):
                _note_smallest(name, module)
        return model


def calibrator_of(text: str, *, weights: bool = False) -> StepOf:
    """The calibrator that a text such as "percentile(percent=99.9)" names, with its options."""
    call = parse_call(text, "calibrator", EXAMPLE)
    entry = get_calibrator(call.name)
    if weights and not entry.rows:
        raise UsageError(
            f"calibrator '{entry.name}' needs many values and is not for weights, of which a step has few; take mse "
            "or min-max for weights."
        )
    return entry.step_of(call.options)


def observed(model: nn.Module, batches: Batches) -> dict[str, Sample]:
    """What enters each quantizer that starts from data, by its path, while the model runs in float."""
    samples: dict[str, Sample] = {}

    def watch(name: str, quantizer: ActivationQuantizer, x: Tensor) -> None:
        if not isinstance(quantizer, FirstBatchQuantizer):
            return
        try:
            samples.setdefault(name, Sample()).add(quantizer.rows(x))
        except QuantizationError as error:
            raise QuantizationError(f"the input of '{name.rpartition('.')[0]}' on calibration data: {error}") from error

    with torch.no_grad(), in_float(model, watch):
        for batch in tracked(batches, "calibration", len(batches)):
            with states_kept(model, len(batch)):
                model(batch)
    return samples


def check_batches(batches: Batches) -> None:
    """Raise DataError for batches without a value, with NaN or infinity, or of zeros alone."""
    if not batches or not all(batch.numel() for batch in batches):
        raise DataError("calibration data: there is no sample; give at least one batch of inputs.")
    first = 0
    for batch in batches:
        wrong = (~torch.isfinite(batch)).flatten(1).any(dim=1) if batch.dim() > 1 else ~torch.isfinite(batch)
        if bool(wrong.any()):
            number = first + int(wrong.nonzero()[0])
            raise DataError(
                f"calibration data: sample {number} holds NaN or infinity ({int(wrong.sum())} in its batch); a step "
                "from it would be none. Remove such samples, or replace their values."
            )
        first += len(batch)
    if not any(bool(batch.any()) for batch in batches):
        raise DataError(
            f"calibration data: all values of its {first} samples are 0, from which no step follows; give samples as "
            "the model will see them."
        )


def _note_smallest(name: str, module: PositiveStep) -> None:
    small = int((module.first_step <= SMALLEST_STEP).sum())
    if small:
        layer = name.removesuffix(".parametrizations.weight.0").removesuffix(".activation_quantizer")
        note(f"'{layer}': {small} of its steps are {SMALLEST_STEP:g}, the smallest that a quantizer has")
