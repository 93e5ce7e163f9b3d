"""Pairs of layers between which a channel can be scaled: what the first gives, only the second reads, and everything
between them commutes with a positive factor per channel.

Found by running the model in float on an example and watching torch's operators, not by names of modules. Between the
layers may be a batch norm of the first layer's own, ReLU, leaky ReLU and PReLU, maximum and average pooling, and
flattening of images of one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from subbyte.models.post.float_values import in_float
from subbyte.models.quant import QuantizedProduct, quantized_layers
from subbyte.models.state import states_kept

_aten = torch.ops.aten

# Operators whose output, for input times s > 0, is the output times s. All keep the channel axis where it is.
HOMOGENEOUS = {
    _aten.relu.default,
    _aten.relu_.default,
    _aten.leaky_relu.default,
    _aten.leaky_relu_.default,
    _aten._prelu_kernel.default,
    _aten.max_pool2d_with_indices.default,
    _aten.avg_pool2d.default,
    _aten._adaptive_avg_pool2d.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.alias.default,
}
_POOLS_TO_ONE = {_aten.mean.dim}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.squeeze.dims, _aten.squeeze.dim}


@dataclass(frozen=True)
class Pair:
    """Two layers by name: channel i of what `first` gives is input channel i of `second`, and of nothing else."""

    first: str
    second: str


@dataclass
class _Origin:
    """The layer that a value comes from, and the axis of its channels in the value."""

    layer: str
    axis: int


@dataclass
class _Seen:
    origins: dict[int, _Origin] = field(default_factory=dict)  # by id of a tensor
    alive: list[Tensor] = field(default_factory=list)  # keeps the ids valid
    readers: dict[str, set[str]] = field(default_factory=dict)  # layer -> layers that read it; "" is anything else
    axes: dict[tuple[str, str], set[int]] = field(default_factory=dict)  # of the channels, where the second reads
    calls: dict[str, int] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)  # layers and own batch norms that run

    def of(self, tensor: Tensor, origin: _Origin) -> None:
        self.origins[id(tensor)] = origin
        self.alive.append(tensor)

    def read(self, origin: _Origin, by: str) -> None:
        self.readers.setdefault(origin.layer, set()).add(by)


def scaled_pairs(model: nn.Module, batch: Tensor) -> list[Pair]:
    """The pairs of a quantized model, in the order of execution of the first layers."""
    layers, seen = quantized_layers(model), _Seen()
    with ExitStack() as stack:
        for name, layer in layers.items():
            _watch_layer(seen, name, layer, stack)
        for name, layer in layers.items():
            if layer.batch_norm is not None:
                _watch_norm(seen, name, layer.batch_norm, stack)
        stack.enter_context(torch.no_grad())
        stack.enter_context(in_float(model))
        stack.enter_context(states_kept(model, len(batch)))
        with _Watch(seen):
            output = model(batch)
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and id(leaf) in seen.origins:
            seen.read(seen.origins[id(leaf)], "")
    return list(_pairs(layers, seen))


def _pairs(layers: dict[str, QuantizedProduct], seen: _Seen) -> Iterator[Pair]:
    for first, readers in seen.readers.items():
        if len(readers) != 1 or seen.calls[first] != 1:
            continue
        (second,) = readers
        if second == "" or seen.calls[second] != 1 or seen.axes[first, second] != {_input_axis(layers[second])}:
            continue
        if _takes_channel_by_channel(layers[second]):
            yield Pair(first, second)


def _input_axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _takes_channel_by_channel(layer: Any) -> bool:
    """Whether each column, or each row of a depthwise weight, belongs to one input channel."""
    return isinstance(layer, nn.Linear) or layer.groups == 1 or layer.groups == layer.in_channels


def _watch_layer(seen: _Seen, name: str, layer: QuantizedProduct, stack: ExitStack) -> None:
    def entered(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.calls[name] = seen.calls.get(name, 0) + 1
        seen.inside.append(name)
        origin = seen.origins.get(id(args[0])) if args else None
        if origin is not None:
            axis = -1 if origin.axis == args[0].dim() - 1 and isinstance(layer, nn.Linear) else origin.axis
            seen.read(origin, name)
            seen.axes.setdefault((origin.layer, name), set()).add(axis)

    def left(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.inside.pop()
        seen.of(output, _Origin(name, output.dim() - 1 if isinstance(layer, nn.Linear) else 1))

    _register(stack, layer, entered, left)


def _watch_norm(seen: _Seen, name: str, norm: nn.Module, stack: ExitStack) -> None:
    """A batch norm that alone reads a layer scales with it: its factor and shift are the layer's."""

    def entered(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.inside.append(name)

    def left(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.inside.pop()
        origin = seen.origins.get(id(args[0]))
        if origin is not None and origin.layer == name:
            seen.of(output, origin)

    _register(stack, norm, entered, left)


def _register(stack: ExitStack, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of layers through homogeneous operators; any other operator is a reader that is no layer."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.seen.inside:  # a layer's reading is counted where it begins
            return result
        for leaf in tree_leaves((args, kwargs or {})):
            origin = self.seen.origins.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if origin is None:
                continue
            made = result[0] if isinstance(result, tuple) else result
            if _keeps_channels(func, leaf, made, origin.axis, args):
                self.seen.of(made, origin)
            else:
                self.seen.read(origin, "")
        return result


def _keeps_channels(func: Any, source: Tensor, made: Any, axis: int, args: tuple[Any, ...]) -> bool:
    if not isinstance(made, Tensor) or (func not in HOMOGENEOUS | _POOLS_TO_ONE | _VIEWS):
        return False
    if func in _POOLS_TO_ONE:
        reduced = {one % source.dim() for one in args[1]}
        return axis not in reduced and all(one > axis for one in reduced)
    if func in _VIEWS:
        return made.shape[: axis + 1] == source.shape[: axis + 1]
    return made.dim() == source.dim()
