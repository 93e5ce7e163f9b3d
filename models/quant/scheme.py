"""What a scheme is, and the registry of schemes by name.

A scheme says how weights are quantized, how activations are, and which layers are kept at 8 bits. It is made by a
registered function whose parameters are the scheme's options; docs/add-a-scheme.md shows how to add one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from subbyte.errors import QuantizationError, UnknownNameError, UsageError
from subbyte.formats.integer import INT
from subbyte.models.options import mistyped
from subbyte.models.quant.quantizer import ActivationConfig, WeightConfig


@dataclass(frozen=True)
class FirstAndLast:
    """The first and the last quantized layer get integers of `bits` bits, weights per channel, with learned steps."""

    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in INT:
            raise QuantizationError(f"first and last layers are kept at 2 to 8 bits, got {self.bits}")


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized. Without `weights` and `activations` it stays in float.

    `name` and `options` say how `get_scheme` made it, so that a checkpoint can name it: get_scheme(name,
    **dict(options)).
    """

    weights: WeightConfig | None = None
    activations: ActivationConfig | None = None
    keep: FirstAndLast | None = FirstAndLast()
    name: str = "custom"
    summary: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.activations is None):
            raise QuantizationError(
                f"scheme '{self.name}' quantizes only one of weights and activations; integer products need both"
            )
        for field, method in (("weights", "weight_quantizer"), ("activations", "activation_quantizer")):
            config = getattr(self, field)
            if config is not None and not hasattr(config, method):
                raise QuantizationError(
                    f"scheme '{self.name}': {field}={config!r} makes no quantizer; it needs a method {method}()"
                )
        if self.keep is not None and not isinstance(self.keep, FirstAndLast):
            raise QuantizationError(f"scheme '{self.name}': keep is FirstAndLast(bits=8) or None, got {self.keep!r}")

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights is None


_registry: dict[str, Callable[..., Scheme]] = {}


def register_scheme(name: str) -> Callable[[Callable[..., Scheme]], Callable[..., Scheme]]:
    """Decorator: make a function known as the maker of the scheme `name`.

    Its parameters are the options, each with a default that JSON can hold; the first line of its docstring is the
    summary. Raises UsageError when the name is taken.
    """

    def add(make: Callable[..., Scheme]) -> Callable[..., Scheme]:
        if name in _registry:
            raise UsageError(f"scheme '{name}' is registered twice; choose another name")
        _registry[name] = make
        return make

    return add


def get_scheme(name: str, **options: Any) -> Scheme:
    """The scheme of that name with these options, e.g. get_scheme("int4", group_size=32).

    Raises UnknownNameError for a name or an option that does not exist, QuantizationError for a value that cannot be
    or is of another type than the option's annotation.
    """
    if name not in _registry:
        raise UnknownNameError("scheme", name, _registry)
    make = _registry[name]
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of scheme '{name}'", option, known)
    wrong = mistyped(make, options)
    if wrong:
        raise QuantizationError(wrong)
    summary = (inspect.getdoc(make) or "").split("\n")[0]
    return replace(make(**options), name=name, summary=summary, options=tuple(sorted(options.items())))


def all_schemes() -> Iterator[Scheme]:
    """Every registered scheme with its default options, in the order of registration."""
    return iter([get_scheme(name) for name in tuple(_registry)])
