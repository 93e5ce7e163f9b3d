"""Options given by name, to schemes, models and losses: each must be of the type that its annotation says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from subbyte.errors import UsageError


@dataclass(frozen=True)
class Within:
    """The range of a number in an annotation: Annotated[float, Within(0, 1, closed="[)")]; "(" and ")" leave it out."""

    low: float = -inf
    high: float = inf
    closed: Literal["[]", "[)", "(]", "()"] = "()"

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.closed[0] == "[" else self.low < value
        below = value <= self.high if self.closed[1] == "]" else value < self.high
        return above and below

    def __str__(self) -> str:
        return f"{self.closed[0]}{self.low:g}, {self.high:g}{self.closed[1]}"


Positive = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1, "[]")]
Count = Annotated[int, Within(1, closed="[)")]


def range_of(hint: Any) -> Within | None:
    """The range that an annotation states; None where it states none."""
    return next((part for part in get_args(hint)[1:] if isinstance(part, Within)), None) if _annotated(hint) else None


def _annotated(hint: Any) -> bool:
    return get_origin(hint) is Annotated


def check_options(what: str, make: Callable[..., Any], known: Collection[str], options: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless `what` has each of `options`, of the type that `make` annotates."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"{what} has no option '{unknown[0]}'; its options: {', '.join(known) or 'none'}.")
    wrong = mistyped(make, options)
    if wrong:
        raise UsageError(f"{what}: {wrong}.")


def mistyped(make: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """What is wrong with the first of `options` that is not of the type `make` annotates; None if nothing is."""
    try:
        hints = get_type_hints(make, include_extras=True)
    except NameError:  # annotations that only a type checker can resolve
        return None
    for option, value in options.items():
        expected = _allowed(hints.get(option, Any))
        if expected is not None and not any(_is(value, one) for one in expected):
            return f"option '{option}' is {value!r}, expected one of: {', '.join(map(_words, expected))}"
        limits = range_of(hints.get(option, Any))
        if limits is not None and value not in limits:
            return f"option '{option}' is {value!r}, expected a number in {limits}"
    return None


def _allowed(hint: Any) -> list[Any] | None:
    """The types and values that an annotation allows; None where it is none that we check."""
    if _annotated(hint):
        return _allowed(get_args(hint)[0])
    origin = get_origin(hint)
    if origin is Literal:
        return list(get_args(hint))
    if origin in (Union, UnionType):
        parts = [_allowed(None if part is type(None) else part) for part in get_args(hint)]
        return None if any(part is None for part in parts) else [one for part in parts for one in part or ()]
    if hint in (Sequence[int], Sequence[float]):
        return [hint]
    return [hint] if hint is None or hint in (int, float, str, bool) else None


def _is(value: Any, expected: Any) -> bool:
    if get_origin(expected) is Sequence:
        return isinstance(value, (list, tuple)) and all(_is(item, get_args(expected)[0]) for item in value)
    if not isinstance(expected, type):
        return value is None if expected is None else bool(value == expected)
    if isinstance(value, bool):  # an int to Python, but 1 is not what True means
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


def _words(expected: Any) -> str:
    if get_origin(expected) is Sequence:
        return f"list of {get_args(expected)[0].__name__}"
    return expected.__name__ if isinstance(expected, type) else repr(expected)
