"""The register of architectures: names, what they are, and which form of them a low-bit scheme prefers.

To add a model: write one file beside this one whose function is decorated with
`@register_model("name", summary="...")`, takes `classes`, `channels` and `size` and returns a plain `nn.Module`,
and import it in `zoo/__init__.py`.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from subbyte.errors import UnknownNameError, UsageError
from subbyte.models.options import check_options

Size = tuple[int, int]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class ModelEntry:
    """One architecture: how it is made, one line about it, and the options that schemes prefer, by scheme name."""

    name: str
    summary: str
    build: Callable[..., nn.Module]
    prefers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: Size = (32, 32)  # a height and width that it is meant for

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `create` accepts beside classes, channels and size."""
        return tuple(name for name in inspect.signature(self.build).parameters if name not in _GIVEN)


_GIVEN = ("classes", "channels", "size")
_MODELS: dict[str, ModelEntry] = {}


def register_model(
    name: str, *, summary: str, prefers: Mapping[str, Mapping[str, Any]] | None = None, size: Size = (32, 32)
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated function as the architecture `name`.

    `prefers` gives options by scheme, e.g. `{"binary": {"shortcut": "convolution"}}`; `size` is the usual input size.
    Raises `UsageError` for a name that is taken or is not lower case with underscores.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"model name '{name}' must be lower case letters, digits and underscores, such as 'resnet8'.")
    if name in _MODELS:
        raise UsageError(f"model '{name}' is registered already; choose another name.")

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _MODELS[name] = ModelEntry(name, summary, build, prefers or {}, size)
        return build

    return register


def get_model(name: str) -> ModelEntry:
    """The entry of architecture `name`; raises `UnknownNameError` with the nearest name."""
    if name not in _MODELS:
        raise UnknownNameError("model", name, _MODELS)
    return _MODELS[name]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the architectures that match a shell pattern such as `resnet*`, sorted."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create(
    name: str, *, classes: int = 10, channels: int = 3, size: int | Size | None = None, **options: Any
) -> nn.Module:
    """Make the architecture `name` for images [batch, channels, height, width] and `classes` outputs.

    `size` is (height, width), or one number for a square; without it, the architecture's usual one. Further options
    are the architecture's own. Raises `UnknownNameError` for the name, `UsageError` for an option or a size that does
    not fit.
    """
    entry = get_model(name)
    check_options(f"model '{name}'", entry.build, entry.options, options)
    if classes < 1 or channels < 1:
        raise UsageError(f"model '{name}' needs at least one class and one channel, got {classes} and {channels}.")
    return entry.build(
        classes=classes, channels=channels, size=as_size(entry.size if size is None else size), **options
    )


def options_for_scheme(name: str, scheme: str) -> dict[str, Any]:
    """The options of architecture `name` that the scheme prefers; empty for most."""
    return dict(get_model(name).prefers.get(scheme, {}))


def create_for_scheme(name: str, scheme: str, **arguments: Any) -> nn.Module:
    """Like `create`, in the form that the scheme prefers: binary networks want a shortcut around every convolution.

    Options given by name win over the preference. The model is not quantized yet.
    """
    return create(name, **{**options_for_scheme(name, scheme), **arguments})


def check_counts(model: str, **counts: int) -> None:
    """Raise `UsageError` for widths, depths and the like, given by name, of which one is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"model '{model}': option '{name}' is {count}; it must be at least 1.")


def as_size(size: int | Size) -> Size:
    """(height, width) of a size given as one number or as a pair; raises `UsageError` if not positive."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise UsageError(f"size must be a positive number or (height, width), got {size!r}.")
    return pair
