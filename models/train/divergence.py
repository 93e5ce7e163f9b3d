"""Numbers that are not finite: where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from subbyte.errors import TrainingError


def first_not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not _finite(tensor):
            return name
    return None


def refuse_not_finite(model: nn.Module, when: str) -> None:
    """Raise TrainingError where the model has a number that is not finite, before it replaces what was saved."""
    name = first_not_finite(model)
    if name is not None:
        raise TrainingError(
            f"'{name}' holds NaN or infinity {when}. The checkpoint and the state of the run are those before it. "
            "Lower the learning rate, clip the gradient (clip=1.0), or look at the data."
        )


@torch.no_grad()
def origin(model: nn.Module, images: Tensor) -> str:
    """Where NaN or infinity came from in the forward of a batch: the batch, a parameter, or the first layer."""
    if not _finite(images):
        return "the batch holds NaN or infinity"
    name = first_not_finite(model)
    if name is not None:
        return f"'{name}' holds NaN or infinity"
    found: list[str] = []

    def watch(layer: str) -> object:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if not found and all(map(_finite, _tensors(inputs))) and not all(map(_finite, _tensors(output))):
                found.append(layer)

        return look

    hooks = [
        module.register_forward_hook(watch(layer))
        for layer, module in model.named_modules()
        if not any(True for _ in module.children()) or hasattr(module, "weight_quantizer")
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return (
        f"layer '{found[0]}' is the first that gives NaN or infinity" if found else "every layer gives finite numbers"
    )


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
