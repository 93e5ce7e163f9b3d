"""Run a model on an example and watch: in which order layers execute, and which batch norm alone uses a layer's output.

The watching is below torch's functions (a dispatch mode sees every operator), so that a residual connection or a
function that reads a layer's output is seen as well as a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from subbyte.errors import QuantizationError
from subbyte.models.state import states_kept


@dataclass(frozen=True)
class Trace:
    """What an example run showed: modules by first execution, {layer: the batch norm that alone uses its output}."""

    order: tuple[str, ...]
    norms: Mapping[str, str]


@dataclass
class _Record:
    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    produced: dict[int, str] = field(default_factory=dict)  # id of an output tensor -> layer
    users: dict[str, set[str]] = field(default_factory=dict)  # layer -> who reads its output; "" is not a batch norm
    inside: list[str] = field(default_factory=list)  # batch norms being executed
    alive: list[Any] = field(default_factory=list)  # keeps the ids valid


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: _Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        record = self.record
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in record.produced:
                user = record.inside[-1] if record.inside else ""
                record.users.setdefault(record.produced[id(leaf)], set()).add(user)
        return func(*args, **(kwargs or {}))


def trace(model: nn.Module, example: Any, layers: Sequence[str], norms: Sequence[str]) -> Trace:
    """Run `model` in eval mode on `example` (a tensor, a tuple of arguments, or a dict of keyword arguments).

    `layers` and `norms` name the modules to watch. States begin with their initial values, for the batch of the first
    tensor. The mode of every module and every state is restored; nothing is changed.
    Raises QuantizationError when the model fails on the example.
    """
    record = _Record()
    modules = dict(model.named_modules())
    handles = []
    for name in layers:
        handles.append(modules[name].register_forward_hook(_produced(record, name)))
    for name in norms:
        handles.append(modules[name].register_forward_pre_hook(_entered(record, name)))
        handles.append(modules[name].register_forward_hook(_left(record)))
    try:
        with torch.no_grad():
            output = run_watched(model, example, _Watch(record))
    finally:
        for handle in handles:
            handle.remove()
    for leaf in tree_leaves(output):
        if id(leaf) in record.produced:
            record.users.setdefault(record.produced[id(leaf)], set()).add("")
    return Trace(tuple(record.order), _sole_norms(record, layers, set(norms)))


def run_watched(model: nn.Module, example: Any, watch: TorchDispatchMode) -> Any:
    """What `model` gives in eval mode for the example, within `watch`; modes and states are restored.

    Raises QuantizationError when the model fails on the example.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]), states_kept(model, _batch(example)), watch:
            return _call(model, example)
    except Exception as error:
        raise QuantizationError(f"the model fails on the example given to quantize: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)


def _batch(example: Any) -> int:
    """The first axis of the first tensor that has axes."""
    return next((len(leaf) for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim()), 1)


def _sole_norms(record: _Record, layers: Sequence[str], norms: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for layer in layers:
        users = record.users.get(layer, set())
        if len(users) != 1 or record.calls.get(layer) != 1:
            continue
        (user,) = users
        if user in norms and record.calls[user] == 1:
            found[layer] = user
    return found


def _count(record: _Record, name: str) -> None:
    record.calls[name] = record.calls.get(name, 0) + 1
    if record.calls[name] == 1:
        record.order.append(name)


def _produced(record: _Record, name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        _count(record, name)
        if isinstance(output, Tensor):
            record.produced[id(output)] = name
            record.alive.append(output)

    return hook


def _entered(record: _Record, name: str) -> Any:
    def hook(module: nn.Module, inputs: Any) -> None:
        _count(record, name)
        record.inside.append(name)

    return hook


def _left(record: _Record) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        record.inside.pop()

    return hook
