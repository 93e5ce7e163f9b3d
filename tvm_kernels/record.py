"""A dataclass checks its own fields: each has a value, of the type of its annotation. From `__post_init__`:

check_fields(self, f"target '{self.name}'", "docs/add-a-target.md", empty=("features",))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from subbyte.errors import RegistrationError

LONGEST = 80  # characters of a value that an error repeats


def check_fields(record: Any, what: str, page: str, empty: Collection[str] = ()) -> None:
    """Raise RegistrationError for the first field of a dataclass that is missing or of a type that it cannot have.

    A field without a default is missing if it is None, or an empty text or collection; those of `empty` may be.
    """
    hints = get_type_hints(type(record))
    for part in fields(record):
        value, hint = getattr(record, part.name), hints[part.name]
        required = part.default is MISSING and part.default_factory is MISSING and part.name not in empty
        if required and _is_empty(value):
            raise RegistrationError(f"{what} has no {part.name}; see {page}")
        if not _is(value, hint):
            raise RegistrationError(f"{what}: its {part.name} is {_shown(value)}, expected {_words(hint)}; see {page}")


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Collection) and not value)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of an annotation."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        each = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_is, value, each))
    if origin is frozenset:
        return isinstance(value, frozenset) and all(_is(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    if origin is Callable:
        return callable(value)
    if isinstance(value, bool):  # an int to Python, but 1 is not what True means
        return hint is bool
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner[1:] != (...,):
        return f"a tuple of {', '.join(map(_words, inner))}"
    if origin is Callable:
        return "a function"
    if origin is Mapping:
        return f"a mapping of {_words(inner[0])} to {_words(inner[1])}"
    if origin is not None:
        return f"a {origin.__name__} of {_words(inner[0])}"
    return "None" if hint is type(None) else str(hint.__name__)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= LONGEST else text[:LONGEST] + '...'} ({type(value).__name__})"
