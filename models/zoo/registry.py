"""The register of architectures: names, what they take, and which form of them a low-bit scheme prefers.

To add a model: write one file beside this one whose function is decorated with
`@register_model("name", summary="...")` and returns a plain `nn.Module`, and import it in `zoo/__init__.py`. It takes
`classes`, `channels` and `size` where it is for images, and `shape` and `outputs` where it is for anything else of
`INPUTS` (`takes=`).
"""

from __future__ import annotations

import fnmatch
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.options import check_options

Size = tuple[int, int]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class InputKind:
    """What one input of a network is: its axes without the batch, its dtype, and what tells `build` of both."""

    axes: tuple[str, ...]
    dtype: str
    given: tuple[str, ...]  # arguments of `build` beside the architecture's own options

    def __str__(self) -> str:
        return f"[{', '.join(self.axes)}] of {self.dtype}"


INPUTS: Mapping[str, InputKind] = {
    "image": InputKind(("channels", "height", "width"), "float32", ("classes", "channels", "size")),
    "series": InputKind(("channels", "length"), "float32", ("shape", "outputs")),
    "tokens": InputKind(("length",), "int64", ("shape", "outputs")),
}


@dataclass(frozen=True)
class ModelEntry:
    """One architecture: how it is made, one line about it, and the options that schemes prefer, by scheme name."""

    name: str
    summary: str
    build: Callable[..., nn.Module]
    prefers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: tuple[int, ...] = (32, 32)  # that it is meant for: height and width of an image, else the length
    takes: str = "image"  # a name of INPUTS
    flattens: bool = False  # whether its axes do not matter to it: float32 of any axes will do

    @property
    def input(self) -> InputKind:
        """What one input of it is."""
        return INPUTS[self.takes]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that `create` and `create_for` accept beside what describes inputs and outputs."""
        return tuple(name for name in inspect.signature(self.build).parameters if name not in self.input.given)

    def shape(self, channels: int, size: int | Sequence[int]) -> tuple[int, ...]:
        """One input of it, without the batch: `size` is a length, or (height, width), or one number for a square."""
        if self.takes == "image":
            return (channels, *as_size(size))
        sizes = (size,) if isinstance(size, int) else tuple(size)
        return sizes if self.takes == "tokens" else (channels, *sizes)

    def example(self, shape: Sequence[int], outputs: int, batch: int = 1) -> Tensor:
        """Random inputs [batch, *shape]: from a normal distribution, or tokens in 0...outputs - 1."""
        if self.input.dtype == "int64":
            return torch.randint(outputs, (batch, *shape))
        return torch.randn(batch, *shape)


_MODELS: dict[str, ModelEntry] = {}


def register_model(
    name: str,
    *,
    summary: str,
    prefers: Mapping[str, Mapping[str, Any]] | None = None,
    size: tuple[int, ...] = (32, 32),
    takes: str = "image",
    flattens: bool = False,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated function as the architecture `name`.

    `prefers` gives options by scheme, e.g. `{"binary": {"shortcut": "convolution"}}`; `takes` is a name of `INPUTS`;
    `size` is the usual input size: (height, width) of an image, (length,) of a series and of tokens. An
    image model that `flattens` takes float32 of any axes, as channels of one pixel. Raises
    `RegistrationError` for a name that is taken or not lower case with underscores, and for another `takes` or `size`.
    """
    if not _NAME.fullmatch(name):
        raise RegistrationError(
            f"model name '{name}' must be lower case letters, digits and underscores, such as 'resnet8'."
        )
    if name in _MODELS:
        raise RegistrationError(f"model '{name}' is registered already; choose another name.")
    if takes not in INPUTS:
        raise RegistrationError(f"model '{name}' takes '{takes}'; expected one of: {', '.join(INPUTS)}.")
    sizes = [axis for axis in INPUTS[takes].axes if axis != "channels"]
    if len(size) != len(sizes):
        raise RegistrationError(
            f"model '{name}' takes {takes}: its usual size must be ({', '.join(sizes)}), got {size}."
        )

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _MODELS[name] = ModelEntry(name, summary, build, prefers or {}, size, takes, flattens)
        return build

    return register


def get_model(name: str) -> ModelEntry:
    """The entry of architecture `name`; raises `UnknownNameError` with the nearest name."""
    if name not in _MODELS:
        raise UnknownNameError("model", name, _MODELS)
    return _MODELS[name]


def list_models(pattern: str = "*", *, takes: str | None = None) -> list[str]:
    """Names of the architectures that match a shell pattern such as `resnet*`, sorted; of those for `takes` alone."""
    names = sorted(fnmatch.filter(_MODELS, pattern))
    return [name for name in names if takes is None or _MODELS[name].takes == takes]


def create(
    name: str, *, classes: int = 10, channels: int = 3, size: int | Size | None = None, **options: Any
) -> nn.Module:
    """Make the architecture `name` for images [batch, channels, height, width] and `classes` outputs.

    `size` is (height, width), or one number for a square; without it, the architecture's usual one. Further options
    are the architecture's own. Raises `UnknownNameError` for the name, `UsageError` for an option or a size that does
    not fit and for a model that does not take images: `create_for` makes those.
    """
    entry = get_model(name)
    if entry.takes != "image":
        raise UsageError(
            f"model '{name}' takes {entry.takes} {entry.input}, no images: make it with create_for('{name}', shape="
            "..., outputs=...)."
        )
    check_options(f"model '{name}'", entry.build, entry.options, options)
    if classes < 1 or channels < 1:
        raise UsageError(f"model '{name}' needs at least one class and one channel, got {classes} and {channels}.")
    return entry.build(
        classes=classes, channels=channels, size=as_size(entry.size if size is None else size), **options
    )


def create_for(name: str, *, shape: Sequence[int], outputs: int, dtype: str | None = None, **options: Any) -> nn.Module:
    """Make the architecture `name` for data: inputs [batch, *shape], of `outputs` classes, labels or values.

    `shape` is (channels, height, width) of an image, (channels, length) of a series, (length,) of tokens, of which
    `outputs` is the vocabulary. `dtype` is that of the data, checked where it is given. Raises `UnknownNameError` for
    the name, `UsageError` for data of another kind than the model takes and for an option that does not fit.
    """
    entry = get_model(name)
    known, shape = entry.input, tuple(shape)
    if entry.flattens and len(shape) != len(known.axes) and dtype in (None, known.dtype):
        shape = (math.prod(shape), 1, 1)
    if len(shape) != len(known.axes) or (dtype is not None and dtype != known.dtype):
        given = f"{list(shape)}" + (f" of {dtype}" if dtype is not None else "")
        raise UsageError(
            f"model '{name}' takes {entry.takes} {known}, the data has {given}; models for such data: "
            f"{', '.join(_for_rank(len(shape), dtype)) or 'none'}."
        )
    if outputs < 1 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise UsageError(f"model '{name}' needs positive sizes and outputs, got {list(shape)} and {outputs}.")
    if entry.takes == "image":
        return create(name, classes=outputs, channels=shape[0], size=(shape[1], shape[2]), **options)
    check_options(f"model '{name}'", entry.build, entry.options, options)
    return entry.build(shape=shape, outputs=outputs, **options)


def _for_rank(rank: int, dtype: str | None) -> list[str]:
    entries = (get_model(name) for name in list_models())
    return [e.name for e in entries if (e.flattens or len(e.input.axes) == rank) and dtype in (None, e.input.dtype)]


def options_for_scheme(name: str, scheme: str) -> dict[str, Any]:
    """The options of architecture `name` that the scheme prefers; empty for most."""
    return dict(get_model(name).prefers.get(scheme, {}))


def create_for_scheme(name: str, scheme: str, **arguments: Any) -> nn.Module:
    """Like `create`, or `create_for` where a `shape` is given, in the form that the scheme prefers.

    Binary networks want a shortcut around every convolution. Options given by name win over the preference. The model
    is not quantized yet.
    """
    make = create_for if "shape" in arguments else create
    return make(name, **{**options_for_scheme(name, scheme), **arguments})


def check_counts(model: str, **counts: int) -> None:
    """Raise `UsageError` for widths, depths and the like, given by name, of which one is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"model '{model}': option '{name}' is {count}; it must be at least 1.")


def as_size(size: int | Sequence[int]) -> Size:
    """(height, width) of a size given as one number or as a pair; raises `UsageError` if not positive."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise UsageError(f"size must be a positive number or (height, width), got {size!r}.")
    return pair[0], pair[1]
