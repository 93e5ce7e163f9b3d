"""The registers of weight and of activation quantizers by name, of which schemes and recipes are made.

An entry is a function that makes a config; its parameters are the options, and the first line of its docstring is its
summary. An entry that lacks a part, or breaks a promise of quantizers (promises.py), is refused when it registers:

    @register_weights("ternary")
    def ternary(statistic: Literal["mean", "median"] = "mean") -> WeightConfig:
        "-1, 0, +1 times mean |w|"
        return AbsMean(statistic)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from subbyte import formats
from subbyte.errors import QuantizationError, RegistrationError, UnknownNameError
from subbyte.models.options import mistyped
from subbyte.models.quant.promises import broken_by
from subbyte.models.quant.quantizer import ActivationConfig, WeightConfig

C = TypeVar("C")


def lacks(make: Callable[..., Any]) -> str | None:
    """What the function of an entry lacks: a docstring, or an option's default or type; None where it is whole."""
    if not inspect.getdoc(make):
        return "no docstring; its first line is the summary"
    for option in inspect.signature(make).parameters.values():
        if option.default is option.empty or option.annotation is option.empty:
            return f"option '{option.name}' has no default or no type; both are needed"
    return None


class Register(Generic[C]):
    """Functions that make configs, by name."""

    def __init__(self, kind: str, method: str) -> None:
        self.kind, self.method = kind, method  # method: what makes a quantizer of a config
        self.makers: dict[str, Callable[..., C]] = {}

    def __call__(self, name: str) -> Callable[[Callable[..., C]], Callable[..., C]]:
        """Decorator: make a function known by this name; raises RegistrationError for one that is incomplete."""

        def add(make: Callable[..., C]) -> Callable[..., C]:
            lacks = self._lacks(name, make)
            if lacks:
                raise RegistrationError(f"{self.kind} '{name}': {lacks}")
            self.makers[name] = make
            return make

        return add

    def _lacks(self, name: str, make: Callable[..., C]) -> str | None:
        if name in self.makers:
            return "registered twice; choose another name"
        wrong = lacks(make)
        if wrong:
            return wrong
        config = make()
        if not dataclasses.is_dataclass(config) or not hasattr(config, self.method):
            return f"makes {config!r}; expected a frozen dataclass with a method {self.method}()"
        fmt = getattr(config, "format_name", None)
        if fmt not in [known.name for known in formats.all_formats()]:
            return f"its format_name is {fmt!r}, which is not a format (docs/add-a-format.md)"
        return broken_by(config, self.method)

    def make(self, name: str, **options: Any) -> C:
        """The config of that name; raises UnknownNameError, or QuantizationError for a value of another type."""
        if name not in self.makers:
            raise UnknownNameError(self.kind, name, self.makers)
        known = self.options(name)
        for option in options:
            if option not in known:
                raise UnknownNameError(f"option of {self.kind} '{name}'", option, known)
        wrong = mistyped(self.makers[name], options)
        if wrong:
            raise QuantizationError(f"{self.kind} '{name}': {wrong}")
        return self.makers[name](**options)

    def options(self, name: str) -> tuple[str, ...]:
        """The options of an entry."""
        return tuple(inspect.signature(self.makers[name]).parameters)

    def summaries(self) -> dict[str, str]:
        """The first line of each entry's docstring."""
        return {name: (inspect.getdoc(make) or "").split("\n")[0] for name, make in self.makers.items()}


register_weights: Register[WeightConfig] = Register("weight quantizer", "weight_quantizer")
register_activations: Register[ActivationConfig] = Register("activation quantizer", "activation_quantizer")
