"""Post-training quantization of a model in memory: steps on ranges, calibration, then the other steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from subbyte.errors import QuantizationError
from subbyte.models.post.calibration import Batches, Calibration, check_batches
from subbyte.models.post.steps import Call
from subbyte.models.quant import Recipe, quantize
from subbyte.models.state import states_kept


def post_train(
    model: nn.Module, batches: Batches, recipe: Recipe, calibration: Calibration, steps: Sequence[Call] = ()
) -> nn.Module:
    """Quantize a float model in place by a recipe, without training, and return it in eval mode, ready to export.

    `batches`: inputs [N, ...] as the model gets them. Raises DataError for batches that cannot be calibrated with,
    QuantizationError for a model or a recipe that cannot be quantized, or a result that is not finite.
    """
    check_batches(batches)
    model.eval()
    quantized = quantize(model, recipe, example=batches[0])
    for call in (call for call in steps if not call.step.after_calibration):
        quantized = call(quantized, batches, recipe)
    quantized = calibration(quantized, batches)
    for call in (call for call in steps if call.step.after_calibration):
        quantized = call(quantized, batches, recipe)
    quantized.eval()
    with torch.no_grad(), states_kept(quantized, len(batches[0])):
        output = quantized(batches[0])
    if isinstance(output, torch.Tensor) and not bool(output.isfinite().all()):
        raise QuantizationError(
            "the quantized model gives NaN or infinity on calibration data; look at the float model's outputs"
        )
    return quantized
