"""Multiply-accumulates of a model, counted where torch computes them: below its functions, for each layer.

So products that are no layer (of attention: queries and keys) are counted as well. To count another operator of torch,
add a row to MACS; one that holds products that are not counted has a row in UNCOUNTED.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from subbyte.models.quant.trace import run_watched

Formula = Callable[..., int]  # of the operator's arguments, then `out=` its result


def _matrix(a: Tensor, b: Tensor, *_: Any, out: Tensor) -> int:
    """Each element of the result is a sum over the last axis of `a`."""
    return out.numel() * a.shape[-1]


def _added(_: Tensor, a: Tensor, b: Tensor, *rest: Any, out: Tensor) -> int:
    return _matrix(a, b, out=out)


def _added_batches(_: Tensor, a: Tensor, b: Tensor, *rest: Any, out: Tensor) -> int:
    return prod(a.shape) * b.shape[-1]


def _convolution(x: Tensor, weight: Tensor, *rest: Any, out: Tensor) -> int:
    """One filter for each element of the result, or of the input of a transposed convolution."""
    transposed = bool(rest[4])  # after bias, stride, padding, dilation
    return (x if transposed else out).numel() * prod(weight.shape[1:])


def _attention(queries: Tensor, keys: Tensor, values: Tensor, *_: Any, out: Any) -> int:
    """Queries x keys, then their weights x values; all of them, where a mask hides some."""
    return queries.numel() * keys.shape[-2] + prod(queries.shape[:-1]) * keys.shape[-2] * values.shape[-1]


MACS: Mapping[str, Formula] = {
    "aten::mm": _matrix,
    "aten::bmm": _matrix,
    "aten::mv": _matrix,
    "aten::dot": _matrix,
    "aten::vdot": _matrix,
    "aten::addmm": _added,
    "aten::addmv": _added,
    "aten::baddbmm": _added,
    "aten::addbmm": _added_batches,
    "aten::convolution": _convolution,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
}
UNCOUNTED = (
    *("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::miopen_rnn", "aten::lstm", "aten::gru", "aten::rnn_tanh"),
    *("aten::_trilinear", "aten::_cdist_forward", "aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r"),
    *("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd", "aten::linalg_"),
)
_KNOWN = ("aten::", "prim::", "prims::")  # of other libraries nothing is known


@dataclass
class Macs:
    """Multiply-accumulates of one run: of each layer, of products outside of all layers, and what was not counted."""

    layers: dict[str, int] = field(default_factory=dict)
    others: int = 0
    uncounted: dict[str | None, set[str]] = field(default_factory=dict)  # layer, or None of all -> operators


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = Macs()
        self.inside: list[str | None] = [None]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, layer = func._schema.name, self.inside[-1]
        if name in MACS:
            count = MACS[name](*args, out=result)
            if layer is None:
                self.macs.others += count
            else:
                self.macs.layers[layer] += count
        elif name.startswith(UNCOUNTED) or not name.startswith(_KNOWN):
            self.macs.uncounted.setdefault(layer, set()).add(name)
        return result


def count_macs(model: nn.Module, example: Any, layers: Sequence[str]) -> Macs:
    """Run `model` in eval mode on `example` and count; a product within several of the layers is the innermost's.

    Modes and states are restored. Raises QuantizationError when the model fails on the example.
    """
    count, modules = _Count(), dict(model.named_modules())
    count.macs.layers = dict.fromkeys(layers, 0)
    hooks = []
    for name in layers:
        hooks.append(modules[name].register_forward_pre_hook(lambda *_, name=name: count.inside.append(name)))
        hooks.append(modules[name].register_forward_hook(lambda *_: _left(count), always_call=True))
    try:
        with torch.enable_grad():  # without it torch's Transformer layers compute in one operator
            run_watched(model, example, count)
    finally:
        for hook in hooks:
            hook.remove()
    return count.macs


def _left(count: _Count) -> None:
    count.inside.pop()
