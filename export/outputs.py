"""What a model's forward returns, as tensors with names: one tensor, or a tuple, a list or a dict of tensors.

A dict gives its keys as names, a named tuple its fields; the tensors of other tuples and lists are `output_0`,
`output_1`, ... A tensor that comes alone is `logits`. The order is that of the forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from subbyte.errors import ExportError

Array = npt.NDArray[Any]

INPUT, ALONE = "input", "logits"


def named_outputs(result: object) -> dict[str, Tensor]:
    """The tensors that a forward returned, by name, in its order; raises ExportError for anything else."""
    named: dict[str, Tensor] = {}
    for name, value in _items(result):
        if isinstance(value, (tuple, list, Mapping)):
            raise ExportError(
                f"output '{name}' of the model's forward is a {type(value).__name__} of {len(value)}, inside of a "
                f"{type(result).__name__}; outputs are one level deep: return a flat dict of tensors, for instance "
                f"{{'{name}_0': ..., '{name}_1': ...}}"
            )
        if not isinstance(value, Tensor):
            raise ExportError(
                f"output '{name}' of the model's forward is of type {type(value).__name__}, expected a tensor: leave "
                "it out in eval mode, or make it a tensor"
            )
        if name in named:
            raise ExportError(f"the model's forward returns two outputs named '{name}'; rename a key of its dict")
        if name == INPUT:
            raise ExportError(
                f"the model's forward returns an output named '{name}', which is the name of the input; rename the key"
            )
        if value.numel() == 0:
            raise ExportError(
                f"output '{name}' of the model's forward is empty, of shape {list(value.shape)}; leave it out"
            )
        named[name] = value
    if not named:
        raise ExportError(
            f"the model's forward returns an empty {type(result).__name__}; expected at least one tensor: return what "
            "the model computes"
        )
    return named


def output_arrays(result: object) -> dict[str, Array]:
    """`named_outputs` as NumPy arrays; a tensor that shares memory with the model or with its input is copied."""
    return {name: np.array(tensor.detach().numpy()) for name, tensor in named_outputs(result).items()}


def _items(result: object) -> Iterable[tuple[str, object]]:
    if isinstance(result, Mapping):
        return [(_key(key), value) for key, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return [(f"output_{i}" if len(result) > 1 else ALONE, value) for i, value in enumerate(result)]
    if isinstance(result, Tensor):
        return [(ALONE, result)]
    raise ExportError(
        f"the model's forward returns a value of type {type(result).__name__}; expected a tensor, or a tuple, list or "
        "dict of tensors: return its tensors in a dict"
    )


def _key(key: object) -> str:
    """The name that a dict's key is; numbers become text."""
    name = str(key) if isinstance(key, (str, int)) and not isinstance(key, bool) else ""
    if not name or not name.isprintable():
        raise ExportError(
            f"the model's forward returns a dict with the key {key!r}, which cannot name an output; use printable text "
            "such as 'boxes'"
        )
    return name
