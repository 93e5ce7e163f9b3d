"""A quantized model run in float: every quantizer passes its values unchanged, and may be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from subbyte.models.quant.eval_constants import fake_quantized
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer

Watch = Callable[[str, ActivationQuantizer, Tensor], None]


@contextmanager
def in_float(model: nn.Module, watch: Watch | None = None) -> Iterator[None]:
    """Within this context a model in eval mode computes what the float model does that it was made of.

    `watch` is called with the path of each activation quantizer that runs, the quantizer, and what comes in.
    """
    quantizers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (ActivationQuantizer, WeightQuantizer))
    }

    def passing(name: str, quantizer: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if watch is not None and isinstance(quantizer, ActivationQuantizer):
                watch(name, quantizer, x)
            return x

        return forward

    try:
        for name, quantizer in quantizers.items():
            held: dict[str, Any] = quantizer.__dict__
            held["forward"] = passing(name, quantizer)
            if isinstance(quantizer, ActivationQuantizer):
                held["pad_value"] = 0.0  # of signs it is 1
        with fake_quantized(model):
            yield
    finally:
        for quantizer in quantizers.values():
            quantizer.__dict__.pop("forward", None)
            quantizer.__dict__.pop("pad_value", None)
