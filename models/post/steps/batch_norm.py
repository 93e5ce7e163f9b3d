"""Batch-norm re-estimation: statistics of what the quantized model gives, in place of those of the float model."""

from __future__ import annotations

import torch
from torch import nn

from subbyte.errors import QuantizationError
from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.post.reporting import tracked
from subbyte.models.post.steps.register import step
from subbyte.models.quant import Recipe, fake_quantized
from subbyte.models.state import states_kept


@step(
    "batch-norm",
    source="Hubara et al., Improving Post Training Neural Quantization (CalibTIP), 2020, section 3.4",
    needs=(Calibration,),
    changes="statistics",
)
def batch_norm(model: nn.Module, batches: Batches, recipe: Recipe) -> nn.Module:
    """running means and variances of batch norms, as the quantized model gives them

    Each is the mean over the batches of the batch's own (the variance is that of a sample, as torch has it), where
    every batch norm normalizes with the statistics of the batch. Raises QuantizationError for a model without any.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        raise QuantizationError("step 'batch-norm': the model has no batch norm with running statistics; leave it out")
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        with torch.no_grad(), fake_quantized(model):
            for batch in tracked(batches, "batch norms", len(batches)):
                with states_kept(model, len(batch)):
                    model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return model
