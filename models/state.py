"""State: values of a module that live between calls, such as the hidden vector of a recurrent cell.

    register_state(self, "h", torch.zeros(1, 64))       # in __init__; the first axis is the batch
    h = self.h; ...; self.h = new                       # in forward: read, compute, assign

A state is float32. Where its values are codes (integers of at most 8 bits, made by a quantizer), each takes a byte in
an exported file and in a bundle. The value is not saved with a model; the initial value is (buffer `initial_h`), and a
model that was loaded begins with it.

Between two calls in training a state keeps the graph of its gradient: `detach_states` cuts it (truncated
backpropagation through time), `over_time.OverTime` runs whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError

_INITIAL = "initial_{}"


def register_state(module: nn.Module, name: str, initial: Tensor) -> None:
    """Make `module.name` a state that begins with a copy of `initial`, float32 [1, ...].

    Raises QuantizationError for a name that the module has already, another type or batch, and NaN or infinity.
    """
    where = f"state '{name}' of {type(module).__name__}"
    if not name.isidentifier() or hasattr(module, name) or hasattr(module, _INITIAL.format(name)):
        raise QuantizationError(
            f"{where}: the name is taken or is not an identifier; a state becomes the attributes '{name}' and "
            f"'{_INITIAL.format(name)}'"
        )
    if initial.dtype != torch.float32 or initial.dim() < 1 or initial.shape[0] != 1 or not initial.numel():
        raise QuantizationError(
            f"{where}: its initial value is {initial.dtype} {list(initial.shape)}, expected float32 [1, ...]: "
            "codes are integer-valued float32, and the first axis is the batch"
        )
    if not initial.is_meta and not bool(initial.isfinite().all()):
        raise QuantizationError(f"{where}: its initial value contains NaN or infinity; give finite values")
    module.register_buffer(_INITIAL.format(name), initial.detach().clone())
    module.register_buffer(name, initial.detach().clone(), persistent=False)
    if "_states" not in module.__dict__:
        module.__dict__["_states"] = ()
        module.register_load_state_dict_post_hook(_begin_as_loaded)  # type: ignore[no-untyped-call]
    module.__dict__["_states"] += (name,)


def _begin_as_loaded(module: nn.Module, _keys: Any) -> None:
    reset_states(module)


def named_states(model: nn.Module) -> dict[str, Tensor]:
    """Every state of a model by its path, such as 'cell.h'; a module with several paths has its first."""
    return {path: getattr(module, name) for path, module, name in _places(model)}


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    held: dict[str, Any] = module._buffers if name in module._buffers else module.__dict__
    held[name] = value


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        for name in module.__dict__.get("_states", ()):
            yield f"{path}.{name}" if path else name, module, name


def reset_states(model: nn.Module, batch: int = 1) -> None:
    """Give every state its initial value, for `batch` sequences that run at once."""
    for _, module, name in _places(model):
        initial = getattr(module, _INITIAL.format(name))
        _assign(module, name, initial.detach().expand(batch, *initial.shape[1:]).clone())


def detach_states(model: nn.Module) -> None:
    """Cut the gradient at every state: the next call begins from its value alone."""
    for _, module, name in _places(model):
        _assign(module, name, getattr(module, name).detach())


def set_states(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Assign states by path; raises QuantizationError for a path that the model has no state of."""
    places = {path: (module, name) for path, module, name in _places(model)}
    for path, value in values.items():
        if path not in places:
            raise QuantizationError(f"the model has no state '{path}'; it has {', '.join(places) or 'none'}")
        _assign(*places[path], value)


@contextmanager
def states_kept(model: nn.Module, batch: int | None = None) -> Iterator[None]:
    """Restore every state at the end; with `batch` they have their initial values at the beginning."""
    before = named_states(model)
    if batch is not None:
        reset_states(model, batch)
    try:
        yield
    finally:
        set_states(model, before)


@contextmanager
def states_as_attributes(model: nn.Module) -> Iterator[None]:
    """Within this context states are plain attributes: a tracer would write what is assigned to a buffer into it."""
    places = [(module, name) for _, module, name in _places(model)]
    for module, name in places:
        module.__dict__[name] = module._buffers.pop(name)
    try:
        yield
    finally:
        for module, name in places:
            module._buffers[name] = module.__dict__.pop(name)
