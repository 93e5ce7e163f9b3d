"""Options of commands that are repeated: `--data-option size=32 --data-option suffix=.py`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from typing import Any


def named_values(flag: str, given: tuple[str, ...]) -> Mapping[str, Any]:
    """NAME=VALUE pairs as keyword arguments, each value as `_value` reads it; raises UsageError."""
    from subbyte.errors import UsageError

    options: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals or not value:
            raise UsageError(f"{flag} takes NAME=VALUE, got '{item}'")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """None, a truth value, a whole number, another finite number, a list where there is a comma, or the text itself."""
    if "," in text:
        return [_value(part) for part in text.split(",") if part]
    if text in _WORDS:
        return _WORDS[text]
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            return number if isfinite(number) else text
    return text


_WORDS = {"none": None, "true": True, "false": False}
