"""Ways to spoil a right file: its bytes, the numbers in them, a value somewhere in its JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator

_NUMBERS = sorted(
    {sign * (1 << bits) + step for bits in (0, 7, 8, 15, 16, 24, 31, 32, 63) for step in (-1, 0, 1) for sign in (1, -1)}
)


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    """One of the options, as it is (NumPy's choice makes arrays of them)."""
    return options[int(rng.integers(len(options)))]


def number(rng: Rng) -> int:
    """An integer near the end of a machine type, or a small one."""
    return int(pick(rng, _NUMBERS)) if rng.random() < 0.7 else int(rng.integers(-3, 70))


# ---- bytes ----


def _place(data: bytearray, rng: Rng, length: int = 1) -> int:
    """Somewhere in the data; half of all places are among the first 64 or the last 64 bytes, where headers are."""
    most = max(1, len(data) - length + 1)
    if rng.random() < 0.5:
        near = int(rng.integers(min(64, most)))
        return near if rng.random() < 0.7 else most - 1 - near
    return int(rng.integers(most))


def _flip(data: bytearray, rng: Rng) -> None:
    data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _byte(data: bytearray, rng: Rng) -> None:
    data[_place(data, rng)] = int(rng.integers(256))


def _integer(data: bytearray, rng: Rng) -> None:
    width = int(pick(rng, (1, 2, 4, 8)))
    if len(data) >= width:
        at = _place(data, rng, width)
        value = number(rng) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, pick(rng, ("little", "big")))


def _cut(data: bytearray, rng: Rng) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 40))]


def _truncate(data: bytearray, rng: Rng) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


def _insert(data: bytearray, rng: Rng) -> None:
    at = _place(data, rng)
    data[at:at] = rng.bytes(int(rng.integers(1, 20)))


def _repeat(data: bytearray, rng: Rng) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + int(rng.integers(1, 200))]


def _append(data: bytearray, rng: Rng) -> None:
    data += bytes(int(rng.integers(1, 30))) if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 30)))


def _exchange(data: bytearray, rng: Rng) -> None:
    length = int(rng.integers(1, 20))
    first, second = _place(data, rng, length), _place(data, rng, length)
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )


_WAYS: tuple[Callable[[bytearray, Rng], None], ...] = (
    *(_flip, _byte, _integer, _integer, _integer),
    *(_cut, _truncate, _insert, _repeat, _append, _exchange),
)


def corrupted(data: bytes, rng: Rng, most: int = 3) -> bytes:
    """The bytes, spoilt in one to `most` places."""
    spoilt = bytearray(data)
    for _ in range(int(rng.integers(1, most + 1))):
        if spoilt:
            pick(rng, _WAYS)(spoilt, rng)
    return bytes(spoilt)


# ---- JSON ----


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


# Made when they are drawn: some are large.
_VALUES: tuple[Callable[[], Any], ...] = (
    *(lambda: None, lambda: True, lambda: False, lambda: "", lambda: [], lambda: {}, lambda: 0.5, lambda: -0.0),
    *(lambda: 1e308, lambda: float("nan"), lambda: float("inf"), lambda: float("-inf"), lambda: 10**400),
    *(lambda: "x" * 5000, lambda: "a\0b", lambda: "\ud800", lambda: "../x", lambda: "/etc/passwd", lambda: "0" * 64),
    *(lambda: _nested(300), lambda: [0] * 3000, lambda: {"a": {"b": []}}, lambda: "float32", lambda: [1, 2, 3]),
)


def json_value(rng: Rng) -> Any:
    """A value that few fields can hold."""
    return number(rng) if rng.random() < 0.4 else pick(rng, _VALUES)()


def changed_json(value: Any, rng: Rng, most: int = 2) -> Any:
    """A copy of JSON data in which one to `most` places are changed, left out, given twice or exchanged."""
    made = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, most + 1))):
        places = list(_places(made))
        if not places:
            return json_value(rng)
        holder, key = pick(rng, places)
        way = rng.random()
        if way < 0.5:
            holder[key] = json_value(rng)
        elif way < 0.65:
            del holder[key]
        elif way < 0.8:
            other, place = pick(rng, places)
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[pick(rng, (*holder, "unknown", key.upper(), ""))] = holder[key]
    return made


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (list or object, index or key) in JSON data, the outer ones first."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop(0)
        keys = _keys(holder) if isinstance(holder, (dict, list)) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def json_bytes(value: Any, rng: Rng) -> bytes:
    """JSON as text, now and then spoilt, with what JSON has no word for (NaN, lone surrogates) as Python writes it."""
    data = json.dumps(value).encode()
    return corrupted(data, rng, 2) if rng.random() < 0.15 else data
