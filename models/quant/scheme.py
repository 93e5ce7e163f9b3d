"""What a scheme is, how its two halves combine, and the register of schemes by name.

A scheme says how a layer is quantized: its weights, its input, or both. It is made by a registered function whose
parameters are the scheme's options (docs/add-a-scheme.md shows how to add one), or of a weight and an activation
quantizer (`combine`). Which layers get which scheme is a recipe's to say (`recipe.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from subbyte.errors import QuantizationError, RegistrationError, UnknownNameError
from subbyte.formats.integer import INT
from subbyte.models.options import mistyped
from subbyte.models.quant.quantizer import ActivationConfig, WeightConfig
from subbyte.models.quant.register import Register, lacks, register_activations, register_weights

KEEP = 8  # bits of the first and last layer, unless the option `keep` says otherwise


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized. What it says nothing of stays in float.

    `keep` matters where the scheme is given for a whole model: the first and the last layer then get integers of that
    many bits (None: they are quantized like the others). `name` and `options` say how `get_scheme` made it:
    get_scheme(name, **dict(options)); `data` is what makes it again in a recipe (None where objects made it).
    """

    weights: WeightConfig | None = None
    activations: ActivationConfig | None = None
    keep: int | None = None
    name: str = "custom"
    summary: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    data: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for field_, method in (("weights", "weight_quantizer"), ("activations", "activation_quantizer")):
            config = getattr(self, field_)
            if config is not None and not hasattr(config, method):
                raise QuantizationError(
                    f"scheme '{self.name}': {field_}={config!r} makes no quantizer; it needs a method {method}()"
                )
        if self.keep is not None and (isinstance(self.keep, bool) or self.keep not in INT):
            raise QuantizationError(
                f"scheme '{self.name}': keep is the bits of the first and last layer, 2 to 8 bits or None, "
                f"got {self.keep!r}"
            )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weights is None and self.activations is None

    @property
    def label(self) -> str:
        """Its name, or what it does where it has none."""
        if self.name != "custom":
            return self.name
        weights, activations = (
            "float" if half is None else half.format_name for half in (self.weights, self.activations)
        )
        return weights if weights == activations else f"{weights} weights, {activations} activations"

    def alike(self, other: Scheme) -> bool:
        """Whether both quantize a layer in the same way."""
        return (self.weights, self.activations) == (other.weights, other.activations)


_registry: dict[str, Callable[..., Scheme]] = {}


def register_scheme(name: str) -> Callable[[Callable[..., Scheme]], Callable[..., Scheme]]:
    """Decorator: make a function known as the maker of the scheme `name`.

    Its parameters are the options, each with a default that JSON can hold; the first line of its docstring is the
    summary. Every scheme that quantizes has the option `keep` besides. Raises RegistrationError when the name is taken,
    or a part is missing.
    """

    def add(make: Callable[..., Scheme]) -> Callable[..., Scheme]:
        if name in _registry:
            raise RegistrationError(f"scheme '{name}' is registered twice; choose another name")
        if "keep" in inspect.signature(make).parameters:
            raise RegistrationError(f"scheme '{name}' defines the option 'keep', which every scheme has; remove it")
        wrong = lacks(make)
        if wrong:
            raise RegistrationError(f"scheme '{name}': {wrong}")
        if not isinstance(made := make(), Scheme):
            raise RegistrationError(f"scheme '{name}' makes {made!r}; expected a Scheme")
        _registry[name] = make
        return make

    return add


def get_scheme(name: str, **options: Any) -> Scheme:
    """The scheme of that name with these options, e.g. get_scheme("int4", group_size=32, keep=None).

    Raises UnknownNameError for a name or an option that does not exist, QuantizationError for a value that cannot be
    or is of another type than the option's annotation.
    """
    if name not in _registry:
        raise UnknownNameError("scheme", name, _registry)
    make = _registry[name]
    own = {option: value for option, value in options.items() if option != "keep"}
    known = tuple(inspect.signature(make).parameters)
    for option in own:
        if option not in known:
            raise UnknownNameError(f"option of scheme '{name}'", option, (*known, "keep"))
    wrong = mistyped(make, own) or mistyped(_keep, {k: v for k, v in options.items() if k == "keep"})
    if wrong:
        raise QuantizationError(wrong)
    made = make(**own)
    if made.is_float and "keep" in options:
        raise UnknownNameError(f"option of scheme '{name}'", "keep", known)
    summary = (inspect.getdoc(make) or "").split("\n")[0]
    keep = None if made.is_float else options.get("keep", KEEP)
    data = {"name": name, **own} if own else name
    return replace(made, keep=keep, name=name, summary=summary, options=tuple(sorted(options.items())), data=data)


def _keep(keep: int | None) -> None:
    """The type of the option `keep`."""


def all_schemes() -> Iterator[Scheme]:
    """Every registered scheme with its default options, in the order of registration."""
    return iter([get_scheme(name) for name in tuple(_registry)])


# ---- two halves ----

Half: TypeAlias = "str | Mapping[str, Any] | None"  # a name, or {"name": ..., options}; None, "float": not quantized


def combine(weights: Half = None, activations: Half = None, **options: Any) -> Scheme:
    """A scheme of a weight and an activation quantizer by name, e.g. combine("ternary", "int8", per="token").

    Each of `options` goes to the half that has it; where both do, give that half as {"name": ..., option: value}.
    Raises UnknownNameError for a name or an option that does not exist, QuantizationError for what does not fit.
    """
    halves = {"weights": _half(register_weights, weights), "activations": _half(register_activations, activations)}
    given = {side: half for side, half in halves.items() if half is not None}
    known = {side: _register(side).options(half["name"]) for side, half in given.items()}
    for option, value in options.items():
        takers = [side for side in given if option in known[side]]
        if not takers:
            raise UnknownNameError(
                "option of this scheme", option, sorted({o for names in known.values() for o in names})
            )
        if len(takers) > 1:
            raise QuantizationError(
                f"weights and activations both have the option '{option}'; write it inside the one that is meant: "
                f"weights: {{name: {given['weights']['name']}, {option}: ...}}"
            )
        if option in given[takers[0]]:
            raise QuantizationError(f"option '{option}' of {takers[0]} is given twice; leave one out")
        given[takers[0]][option] = value
    if not given:
        return Scheme(name="float", data="float")
    made = {side: _register(side).make(**half) for side, half in given.items()}
    data = {side: dict(half) if len(half) > 1 else half["name"] for side, half in given.items()}
    return Scheme(made.get("weights"), made.get("activations"), data=data)


def _register(side: str) -> Register[Any]:
    return register_weights if side == "weights" else register_activations


def _half(register: Register[Any], given: Half) -> dict[str, Any] | None:
    """{"name": ..., options}, or None for float."""
    if given is None or given == "float":
        return None
    data = {"name": given} if isinstance(given, str) else given
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise QuantizationError(f"{register.kind}: expected a name or {{name: ..., options}}, got {given!r}")
    if data["name"] not in register.makers:
        raise UnknownNameError(register.kind, data["name"], ("float", *register.makers))
    return dict(data)
