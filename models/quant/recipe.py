"""Recipes: which layer of a model is quantized by which scheme, as an ordered list of rules.

The first rule that matches a layer decides. A rule matches by the layer's name, its type, its place, a measured
sensitivity, or all of those that it states; one that states none is for the rest, and comes last:

    Recipe((Rule("int8", match="first-and-last"), Rule("int4", name="blocks.*.attn.*"), Rule("ternary")))

The name of a scheme is the recipe of one such rule for all layers, after one that keeps first and last at 8 bits where
the scheme says so (`keep`). `recipe_data.py` reads recipes from files and writes them into checkpoints.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn

from subbyte.errors import QuantizationError, UnknownNameError
from subbyte.models.quant.scheme import Scheme, combine, get_scheme

RULES = "recipe"  # the name of a recipe that is more than a scheme
Match = Literal["first", "last", "first-and-last"]


@dataclass(frozen=True)
class Layer:
    """A layer that holds a product, as rules see it; `reason` says why it cannot be quantized, if it cannot."""

    name: str
    module: nn.Module
    reason: str | None = None
    first: bool = False  # of the layers that can be quantized, in the order of execution
    last: bool = False


@dataclass(frozen=True, init=False)
class Rule:
    """A scheme (or its name) for the layers that every stated condition is true of.

    `name` is a pattern of module paths, where * is any text (`blocks.*.attn.*`); `type` the class of the
    module, or one that it derives from (`Conv2d`); `match` its place in the order of execution. `sensitivity` is what
    was measured of layers (`subbyte sensitivity`), of which the rule is for those `above` a number. Raises
    QuantizationError.
    """

    scheme: Scheme
    name: str | None = None
    type: str | None = None
    match: Match | None = None
    sensitivity: tuple[tuple[str, float], ...] | None = None
    above: float | None = None

    def __init__(
        self,
        scheme: Scheme | str,
        name: str | None = None,
        type: str | None = None,
        match: Match | None = None,
        sensitivity: Mapping[str, float] | tuple[tuple[str, float], ...] | None = None,
        above: float | None = None,
    ) -> None:
        made = get_scheme(scheme) if isinstance(scheme, str) else scheme
        if dict(made.options).get("keep") is not None:
            raise QuantizationError(
                f"a rule's scheme '{made.name}' has the option keep, which speaks of a whole model; write a rule "
                "{match: first-and-last} before it instead"
            )
        table = None if sensitivity is None else tuple(sorted(dict(sensitivity).items()))
        given = {"name": name, "type": type, "match": match, "sensitivity": table, "above": above}
        for name_, value in {"scheme": replace(made, keep=None), **given}.items():
            object.__setattr__(self, name_, value)
        if match is not None and match not in get_args(Match):
            raise UnknownNameError("place", str(match), get_args(Match))
        if (table is None) != (above is None):
            raise QuantizationError("a rule needs both `sensitivity` and `above`, the number that it is compared with")
        if not all(math.isfinite(value) for _, value in (*(table or ()), ("above", above or 0.0))):
            raise QuantizationError("a rule's sensitivities are finite numbers")

    @property
    def is_rest(self) -> bool:
        """Whether it matches every layer."""
        return not any((self.name, self.type, self.match, self.sensitivity is not None))

    @property
    def is_of_place(self) -> bool:
        """Whether it says nothing but a place, which a model without layers has not."""
        return self.match is not None and not any((self.name, self.type, self.sensitivity is not None))

    def matches(self, layer: Layer) -> bool:
        """Whether every condition is true of the layer."""
        if self.name is not None and not fnmatchcase(layer.name, self.name):
            return False
        if self.type is not None and self.type not in _classes(layer.module):
            return False
        if self.match is not None and not (
            (layer.first and "first" in self.match) or (layer.last and "last" in self.match)
        ):
            return False
        return self.sensitivity is None or dict(self.sensitivity).get(layer.name, -math.inf) > (self.above or 0.0)

    @property
    def condition(self) -> str:
        """Which layers it is for, in words."""
        said = [f"{key} {value}" for key, value in (("name", self.name), ("type", self.type)) if value is not None]
        said += [self.match] if self.match is not None else []
        said += [f"sensitivity above {self.above:g}"] if self.above is not None else []
        return ", ".join(said) or "rest"

    def __str__(self) -> str:
        return f"{self.condition}: {self.scheme.label}"


@dataclass(frozen=True)
class Recipe:
    """Rules in the order in which they are asked. `name` is a scheme's where the recipe is one, else RULES.

    `source` is the file that it was read from, which messages name.
    """

    rules: tuple[Rule, ...]
    name: str = RULES
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.rules:
            raise QuantizationError(
                "a recipe has no rules; end it with one for the rest, e.g. {rest: true, scheme: int8}"
            )
        for number, rule in enumerate(self.rules):
            for earlier, other in enumerate(self.rules[:number]):
                if other.is_rest or replace(other, scheme=rule.scheme) == rule:
                    raise QuantizationError(
                        f"{self.called(number)} decides nothing: {self.called(earlier)} comes before it and matches "
                        "every layer that it matches; remove one, or change their order"
                    )

    @property
    def is_float(self) -> bool:
        """Whether it quantizes nothing."""
        return all(rule.scheme.is_float for rule in self.rules)

    @property
    def main(self) -> Scheme:
        """The scheme of the rule for the rest; float where there is none."""
        return self.rules[-1].scheme if self.rules[-1].is_rest else Scheme()

    def called(self, number: int) -> str:
        """How messages name the rule of this index: `rule 2 (name blocks.*: ternary)`."""
        return f"rule {number + 1} ({self.rules[number]})"

    def decide(self, layers: Sequence[Layer]) -> dict[str, int]:
        """For each layer the index of the rule that decides; a layer that cannot be quantized may have none.

        Raises QuantizationError for a rule that matches nothing, two that contradict each other, a scheme on a layer
        that cannot take it, and a layer that no rule is for.
        """
        with self.blamed():
            return self._decided(layers)

    @contextmanager
    def blamed(self, number: int | None = None) -> Iterator[None]:
        """QuantizationErrors that are raised within this name the file of the recipe, and the rule of this index."""
        try:
            yield
        except QuantizationError as error:
            rule = f"{self.called(number)}: " if number is not None and self.name == RULES else ""
            place = f"'{self.source}': " if self.source else ""
            raise QuantizationError(f"{place}{rule}{error}") from error

    def _decided(self, layers: Sequence[Layer]) -> dict[str, int]:
        decided: dict[str, int] = {}
        for number, rule in enumerate(self.rules):
            self._refuse_unknown(number, layers)
            matched = [layer for layer in layers if rule.matches(layer)]
            left = [layer for layer in matched if layer.name not in decided]
            if not matched and not (rule.is_rest or rule.is_of_place):
                raise QuantizationError(f"{self.called(number)} matches no layer; {_there_are(rule, layers)}")
            if matched and not left:
                self._refuse_contradiction(number, [decided[layer.name] for layer in matched])
            for layer in left:
                decided[layer.name] = number
                if layer.reason is not None and not (rule.is_rest or rule.scheme.is_float):
                    raise QuantizationError(
                        f"{self.called(number)} matches '{layer.name}', which cannot be quantized: {layer.reason}. "
                        "Match other layers, or give it a rule with the scheme float before"
                    )
        for layer in layers:
            if layer.name not in decided and layer.reason is None:
                raise QuantizationError(
                    f"no rule of the recipe is for '{layer.name}'; end it with one for the rest, "
                    "e.g. {rest: true, scheme: float}"
                )
        return decided

    def _refuse_unknown(self, number: int, layers: Sequence[Layer]) -> None:
        """Raise QuantizationError where a table of sensitivities names a layer that the model does not have."""
        known = [layer.name for layer in layers]
        for name, _ in self.rules[number].sensitivity or ():
            if name not in known:
                raise QuantizationError(
                    f"{self.called(number)}: its table names '{name}', which is not a layer of this model"
                    f"{_near(name, known)}"
                )

    def _refuse_contradiction(self, number: int, deciding: Sequence[int]) -> None:
        """Raise QuantizationError where rules before this one took all of its layers, and gave them another scheme."""
        rule = self.rules[number]
        other = next((i for i in deciding if not self.rules[i].scheme.alike(rule.scheme)), None)
        if other is not None and not rule.is_rest:
            raise QuantizationError(
                f"{self.called(number)} contradicts {self.called(other)}, which comes first and decides its layers; "
                "remove one, or change their order"
            )


def as_recipe(choice: str | Scheme | Recipe | Sequence[Rule]) -> Recipe:
    """A recipe as it is, from its rules, or of the one scheme that it is given by (with `keep`: two rules).

    Raises UnknownNameError for an unknown scheme, QuantizationError for what is not a recipe.
    """
    if isinstance(choice, Recipe):
        return choice
    if isinstance(choice, (str, Scheme)):
        scheme = get_scheme(choice) if isinstance(choice, str) else choice
        return Recipe(tuple(_rules_of(scheme)), scheme.name)
    rules = tuple(rule for rule in choice if isinstance(rule, Rule)) if isinstance(choice, Sequence) else ()
    if rules and len(rules) == len(choice):
        return Recipe(rules)
    raise QuantizationError(f"expected a recipe, its rules, a scheme or the name of one, got {choice!r}")


def _rules_of(scheme: Scheme) -> Iterator[Rule]:
    if scheme.keep is not None:
        yield Rule(combine(f"int{scheme.keep}", f"int{scheme.keep}"), match="first-and-last")
    yield Rule(replace(scheme, keep=None, options=tuple(o for o in scheme.options if o[0] != "keep")))


def _classes(module: nn.Module) -> list[str]:
    """Names of the module's class and of those that it derives from, up to nn.Module."""
    return [kind.__name__ for kind in type(module).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]


def _there_are(rule: Rule, layers: Sequence[Layer]) -> str:
    types = sorted({_classes(layer.module)[0] for layer in layers})
    names = [layer.name for layer in layers]
    if rule.type is not None and not any(rule.type in _classes(layer.module) for layer in layers):
        return f"its layers are of the types {', '.join(types) or 'none'}{_near(rule.type, types)}"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"its layers are {shown or 'none'}{_near(rule.name or '', names)}"


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
