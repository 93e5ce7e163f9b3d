"""Looking at the integers that enter every quantized layer while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from subbyte.models.quant.quantizer import ActivationQuantizer


@dataclass(frozen=True, eq=False)
class Observation:
    """One call of an activation quantizer: its layer's module path, what came in (float32), and what came out."""

    layer: str
    values: Tensor
    codes: Tensor
    inverse_step: Tensor | None  # None for signs and for steps found at run time


@contextmanager
def observed_codes(model: nn.Module) -> Iterator[list[Observation]]:
    """Within this context the list fills with one Observation for each quantizer call, in the order of execution.

    Meant for eval mode, where a quantized layer computes with codes.
    """
    seen: list[Observation] = []
    quantizers = {name: m for name, m in model.named_modules() if isinstance(m, ActivationQuantizer)}

    def watch(layer: str, quantizer: ActivationQuantizer) -> None:
        quantize = quantizer.quantize

        def watched(x: Tensor) -> tuple[Tensor, Tensor | None]:
            codes, step = quantize(x)
            inverse = getattr(quantizer, "inverse_step", None)
            seen.append(Observation(layer, x.detach().clone(), codes.detach().clone(), inverse))
            return codes, step

        instance: dict[str, Any] = quantizer.__dict__
        instance["quantize"] = watched

    for name, quantizer in quantizers.items():
        watch(name.rpartition(".")[0], quantizer)
    try:
        yield seen
    finally:
        for quantizer in quantizers.values():
            quantizer.__dict__.pop("quantize", None)
