"""Recipes as plain data: read from YAML, JSON or a checkpoint, and written there.

- {match: first-and-last,     scheme: int8}
- {type: Embedding,           scheme: float}
- {name: "blocks.*.attn.*",   scheme: {weights: ternary, activations: int8, per: token}}
- {sensitivity: {fc1: 0.02, fc2: 0.001}, above: 0.01, scheme: {name: int4, group_size: 32}}
- {sensitivity: table.json, of: ternary, above: 0.01, scheme: int8}       # a file of `subbyte sensitivity`
- {rest: true,                scheme: ternary}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from subbyte.errors import QuantizationError, SubbyteError, UnknownNameError, UsageError
from subbyte.files import limits
from subbyte.files.plain_data import plain_data_line, read_plain_data
from subbyte.models.quant.recipe import Recipe, Rule
from subbyte.models.quant.scheme import Scheme, combine, get_scheme
from subbyte.models.quant.sensitivity_table import read_table

KEYS = ("name", "type", "match", "sensitivity", "above", "rest", "scheme")
_TEXTS = ("name", "type", "match")


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, or in a JSON file (.json).

    Raises UsageError, with the rule, for a file that cannot be read or is not a recipe.
    """
    data = read_plain_data(path, limits.RECIPE_BYTES, "a recipe: a list of rules")
    try:
        return replace(recipe_from_data(_with_tables(data, Path(path).parent)), source=str(path))
    except QuantizationError as error:
        raise UsageError(f"'{path}': {error}") from error


def recipe_from_data(data: Any) -> Recipe:
    """The recipe of a list of rules; raises QuantizationError, with the rule."""
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)):
        raise QuantizationError(f"a recipe is a list of rules, got {_shown(data)}")
    if len(data) > limits.RECIPE_RULES:
        raise QuantizationError(f"a recipe has {len(data)} rules, at most {limits.RECIPE_RULES} are accepted")
    rules = []
    for number, rule in enumerate(data, 1):
        try:
            rules.append(_rule(rule))
        except SubbyteError as error:
            raise QuantizationError(f"rule {number}: {error}") from error
    return Recipe(tuple(rules))


def recipe_data(recipe: Recipe) -> list[dict[str, Any]]:
    """The rules of a recipe as plain data, which `recipe_from_data` reads; raises QuantizationError.

    A scheme made of objects, Scheme(MyWeights(), ...), has no name by which it could be made again.
    """
    return [_rule_data(rule) for rule in recipe.rules]


def _with_tables(data: Any, folder: Path) -> Any:
    """The data of a recipe with the tables that its rules name by file; raises QuantizationError, with the rule."""
    if not isinstance(data, list):
        return data
    found = []
    for number, rule in enumerate(data, 1):
        try:
            found.append(_with_table(rule, folder))
        except SubbyteError as error:
            raise QuantizationError(f"rule {number}: {error}") from error
    return found


def _with_table(rule: Any, folder: Path) -> Any:
    if not isinstance(rule, Mapping) or not isinstance(rule.get("sensitivity"), str):
        return rule
    kept = {key: value for key, value in rule.items() if key != "of"}
    return {**kept, "sensitivity": read_table(folder / rule["sensitivity"], rule.get("of"))}


def recipe_text(recipe: Recipe) -> str:
    """The content of a YAML file of the recipe, a rule in each line; raises QuantizationError as `recipe_data`."""
    return "".join(f"- {plain_data_line(rule)}\n" for rule in recipe_data(recipe))


def _rule(data: Any) -> Rule:
    if not isinstance(data, Mapping):
        raise QuantizationError(f"expected a mapping such as {{rest: true, scheme: int8}}, got {_shown(data)}")
    for key in data:
        if key not in KEYS:
            raise UnknownNameError("key", str(key), KEYS)
    if "scheme" not in data:
        raise QuantizationError("it has no scheme; add one, e.g. scheme: int8")
    conditions = {key: value for key, value in data.items() if key not in ("scheme", "rest")}
    if data.get("rest", True) is not True:
        raise QuantizationError(f"rest is {_shown(data['rest'])}, expected true, or leave it out")
    if ("rest" in data) == bool(conditions):
        raise QuantizationError(
            "it says rest and a condition as well; leave one out"
            if conditions
            else "it has no condition; add name, type, match or sensitivity, or rest: true for all other layers"
        )
    for key in _TEXTS:
        if key in data and (not isinstance(data[key], str) or not data[key]):
            raise QuantizationError(f"{key} is {_shown(data[key])}, expected a text")
    if "above" in data and not _is_number(data["above"]):
        raise QuantizationError(f"above is {_shown(data['above'])}, expected a number")
    table = data.get("sensitivity", {})
    if not isinstance(table, Mapping) or not all(isinstance(k, str) and _is_number(v) for k, v in table.items()):
        raise QuantizationError(f"sensitivity is {_shown(table)}, expected a mapping from layer to number")
    return Rule(scheme_from_data(data["scheme"]), **conditions)


def scheme_from_data(data: Any) -> Scheme:
    """The scheme of a name, of {name: ..., options}, or of {weights: ..., activations: ..., options}.

    Raises QuantizationError or UnknownNameError.
    """
    if isinstance(data, str):
        return get_scheme(data)
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise QuantizationError(f"scheme is {_shown(data)}, expected a name or {{weights: ..., activations: ...}}")
    if "weights" in data or "activations" in data:
        if "name" in data:
            raise QuantizationError("a scheme has a name, or weights and activations; leave one out")
        return combine(**data)
    name = data.get("name")
    if not isinstance(name, str):
        raise QuantizationError(f"scheme is {_shown(data)}, expected the key name, or weights and activations")
    return get_scheme(**data)


def _rule_data(rule: Rule) -> dict[str, Any]:
    if rule.scheme.data is None:
        raise QuantizationError(
            f"the rule '{rule}' has a scheme made of objects, which cannot be saved by name; register it "
            "(docs/add-a-scheme.md), or make it with combine(weights, activations)"
        )
    given = {"name": rule.name, "type": rule.type, "match": rule.match, "above": rule.above}
    written: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if rule.sensitivity is not None:
        written = {"sensitivity": dict(rule.sensitivity), **written}
    return {**(written or {"rest": True}), "scheme": rule.scheme.data}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
