"""The table of converters, {(domain, operator): converter}."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Converter = Callable[[Any, Sequence[Any], dict[str, Any]], Any]

CONVERTERS: dict[tuple[str, str], Converter] = {}


def converter(domain: str, op: str) -> Callable[[Converter], Converter]:
    """Register how an operator becomes Relax."""

    def add(function: Converter) -> Converter:
        CONVERTERS[domain, op] = function
        return function

    return add
