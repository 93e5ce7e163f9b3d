"""What single layers of a quantized model give over calibration batches: in float, and as the model is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.models.post.calibration import Batches
from subbyte.models.post.float_values import in_float
from subbyte.models.quant import QuantizedProduct, fake_quantized, quantized_layers
from subbyte.models.state import states_kept

See = Callable[[Tensor], None]


class _Enough(Exception):
    """The layer that is watched has run: the rest of the forward is not needed."""


def execution_order(model: nn.Module, batch: Tensor) -> dict[str, int]:
    """The quantized layers that a forward executes, in the order of their first call, with the number of calls."""
    calls: dict[str, int] = {}

    def count(name: str) -> See:
        def see(_: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1

        return see

    watched = {layer: count(name) for name, layer in quantized_layers(model).items()}
    with in_float(model), _watching(watched):
        _run(model, batch)
    return calls


def see_float(model: nn.Module, batches: Sequence[Tensor], layers: Mapping[Any, See]) -> None:
    """Show what the modules give while the model runs in float over the batches."""
    with in_float(model), _watching(layers):
        for batch in batches:
            _run(model, batch)


def see_quantized(model: nn.Module, batches: Batches, module: nn.Module, see: See, calls: int) -> None:
    """Show what one module gives in the fake-quantized model; each forward stops after `calls` calls of it."""
    _see_calls(model, batches, lambda seen: _watching({module: seen}), see, calls)


def see_inputs(model: nn.Module, batches: Batches, layer: QuantizedProduct, see: See, calls: int) -> None:
    """Show what enters the product of a layer in the fake-quantized model, as `see_quantized`."""
    quantizer = layer.activation_quantizer
    if quantizer is not None:
        see_quantized(model, batches, quantizer, see, calls)
    else:
        _see_calls(model, batches, lambda seen: _watching_input(layer, seen), see, calls)


def _see_calls(
    model: nn.Module, batches: Batches, watching: Callable[[See], AbstractContextManager[None]], see: See, calls: int
) -> None:
    done = 0

    def seen(value: Tensor) -> None:
        nonlocal done
        see(value)
        done += 1
        if done == calls:
            raise _Enough

    with fake_quantized(model), watching(seen):
        for batch in batches:
            done = 0
            _run(model, batch)


def channel_axis(layer: QuantizedProduct) -> int:
    """The axis of the output channels of a layer's output."""
    return -len(layer.channel_shape()) + (0 if isinstance(layer, nn.Linear) else 1)


def _run(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad(), states_kept(model, len(batch)), suppress(_Enough):
        model(batch)


@contextmanager
def _watching(modules: Mapping[Any, See]) -> Iterator[None]:
    def hook(see: See) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: see(output.detach())

    handles = [module.register_forward_hook(hook(see)) for module, see in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watching_input(module: nn.Module, see: See) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, inputs: see(inputs[0].detach()))
    try:
        yield
    finally:
        handle.remove()
