"""The outputs of a model's forward by name. A forward returns a tensor, or a tuple, list or dict of tensors.

Outputs are named by the keys of a dict, by the fields of a named tuple, `output_0`, `output_1`, ... in other tuples and
lists, and `logits` if there is only one. They keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from subbyte.errors import ExportError

Array = npt.NDArray[Any]

INPUT, SINGLE_OUTPUT = "input", "logits"


def named_outputs(result: object) -> dict[str, Tensor]:
    """The tensors in the result of a forward, by name, in order; raises ExportError for any other result."""
    named: dict[str, Tensor] = {}
    for name, value in _items(result):
        if isinstance(value, (tuple, list, Mapping)):
            raise ExportError(
                f"output '{name}' of the model's forward is a {type(value).__name__} of {len(value)}, nested in a "
                f"{type(result).__name__}; outputs cannot be nested: return a flat dict of tensors, for instance "
                f"{{'{name}_0': ..., '{name}_1': ...}}"
            )
        if not isinstance(value, Tensor):
            raise ExportError(
                f"output '{name}' of the model's forward is of type {type(value).__name__}, expected a tensor: omit "
                "it in eval mode, or convert it to a tensor"
            )
        if name in named:
            raise ExportError(f"the model's forward returns two outputs named '{name}'; rename a key of its dict")
        if name == INPUT:
            raise ExportError(
                f"the model's forward returns an output named '{name}', which is the name of the input; rename the key"
            )
        if value.numel() == 0:
            raise ExportError(f"output '{name}' of the model's forward is empty, of shape {list(value.shape)}; omit it")
        named[name] = value
    if not named:
        raise ExportError(f"the model's forward returns an empty {type(result).__name__}; expected at least one tensor")
    return named


def output_arrays(result: object) -> dict[str, Array]:
    """`named_outputs` as NumPy arrays, copied."""
    return {name: np.array(tensor.detach().numpy()) for name, tensor in named_outputs(result).items()}


def _items(result: object) -> Iterable[tuple[str, object]]:
    if isinstance(result, Mapping):
        return [(_key(key), value) for key, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return [(f"output_{i}" if len(result) > 1 else SINGLE_OUTPUT, value) for i, value in enumerate(result)]
    if isinstance(result, Tensor):
        return [(SINGLE_OUTPUT, result)]
    raise ExportError(
        f"the model's forward returns a value of type {type(result).__name__}; expected a tensor, or a tuple, list or "
        "dict of tensors: return its tensors in a dict"
    )


def _key(key: object) -> str:
    """The output name of a key; an integer becomes text."""
    name = str(key) if isinstance(key, (str, int)) and not isinstance(key, bool) else ""
    if not name or not name.isprintable():
        raise ExportError(
            f"the model's forward returns a dict with the key {key!r}, expected printable text such as 'boxes': rename "
            "the key"
        )
    return name
