"""What a quantizer promises, checked on a small example when its method is registered.

In every mode `fake_quantize(x) == dequantize(codes(x))` exactly, the codes are levels of its format, and it has the
parts that quantized layers and the export read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer

PARTS: dict[type[nn.Module], tuple[str, ...]] = {
    WeightQuantizer: ("format", "scale", "levels"),
    ActivationQuantizer: ("format", "quantize", "scales", "fake_quantize"),
}


def broken_by(config: Any, method: str) -> str | None:
    """The first promise that a quantizer which `method` of a config makes breaks on an example; None for none."""
    if dist.is_available() and dist.is_initialized():
        return None  # a quantizer would wait for the statistics of processes that register nothing now
    example = torch.linspace(-1.0, 1.0, 8).reshape(2, 4)
    try:
        if method == "weight_quantizer":
            broken = _broken(config, config.weight_quantizer(example), WeightQuantizer, example)
        else:
            layer: nn.Module = nn.utils.skip_init(nn.Linear, 4, 2)  # type: ignore[no-untyped-call]
            broken = _broken(config, config.activation_quantizer(layer), ActivationQuantizer, example)
    except Exception as error:  # of whatever kind the new code raises
        return f"fails on a weight or input [2, 4]: {type(error).__name__}: {error}"
    return broken


def _broken(config: Any, quantizer: Any, base: type[nn.Module], example: Tensor) -> str | None:
    if not isinstance(quantizer, base):
        return f"makes a {type(quantizer).__name__}; expected a {base.__name__}"
    for part in PARTS[base]:
        if part not in vars(quantizer) and getattr(type(quantizer), part, None) is getattr(base, part, None):
            return f"its {type(quantizer).__name__} lacks '{part}'"
    fmt: Any = quantizer.format
    if fmt.name != config.format_name:
        return f"its format_name is '{config.format_name}', but its quantizer's format is '{fmt.name}'"
    return broken_on(quantizer, example)


@torch.no_grad()
def broken_on(quantizer: Any, x: Tensor) -> str | None:
    """The first promise on values that a quantizer breaks for this weight or input; None where it keeps all."""
    value = quantizer.fake_quantize(x)
    codes, scale = (quantizer.codes(x), None) if isinstance(quantizer, WeightQuantizer) else quantizer.quantize(x)
    levels, found = quantizer.format.levels, codes.cpu().numpy()
    if levels.integer and not torch.equal(codes, codes.round()):
        return "its codes are not integers"
    unknown = levels.codes_of(found.astype(levels.values.dtype)) < 0
    if unknown.any():
        return f"its code {found[unknown][0]:g} is not a level of {quantizer.format.name}"
    if not torch.equal(value, quantizer.dequantize(codes, scale)):
        return "fake_quantize(x) is not dequantize(codes(x)), bit for bit"
    return None
