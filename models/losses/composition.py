"""Sums of losses as text: "ce + 0.5*kd(temperature=4) - 0.1*supcon(embeddings=head:input)".

sum    := [-] term ((+ | -) term)*
term   := [number *] name [( option = value, ... )]
value  := number | true | false | none | word | "text" | [ value, ... ]
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from subbyte.errors import UsageError

_WORD = r"[A-Za-z_][\w.:]*(?:-[A-Za-z][\w.:]*)*"
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<word>{_WORD})"
    r"|(?P<text>\"[^\"]*\"|'[^']*')|(?P<sign>[-+*(),=\[\]]))"
)
_CONSTANTS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Summand:
    """A loss by name, the number that it is multiplied with, and its options."""

    name: str
    coefficient: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> str:
        """The loss with its options, without the coefficient."""
        options = ", ".join(f"{name}={_written(value)}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def parse(text: str) -> tuple[Summand, ...]:
    """The terms of a sum of losses; raises UsageError with the place of what is wrong."""
    return _Parser(text).sum()


def written(summands: Sequence[Summand]) -> str:
    """The text that `parse` reads as these terms."""
    text = ""
    for summand in summands:
        size = abs(summand.coefficient)
        sign = "-" if summand.coefficient < 0 else "+"
        text += f" {sign} " if text else ("-" if sign == "-" else "")
        text += summand.loss if size == 1 else f"{size!r}*{summand.loss}"
    return text


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = re.fullmatch(_WORD, value) and value not in _CONSTANTS
        return value if plain else (f'"{value}"' if '"' not in value else f"'{value}'")
    return repr(value)


def parse_call(text: str, kind: str, example: str) -> Summand:
    """What is named, with its options: "percentile(percent=99.9)"; raises UsageError that names `kind`."""
    terms = _Parser(text, kind, example).sum()
    if len(terms) != 1 or terms[0].coefficient != 1:
        raise UsageError(f"{kind} '{text}': expected one name with its options; write for example '{example}'.")
    return terms[0]


class _Parser:
    def __init__(self, text: str, kind: str = "loss", example: str = "cross-entropy + 0.5*kd(temperature=4)") -> None:
        self.text, self.place, self.of, self.example = text, 0, kind, example
        self.kind, self.token, self.start = "", "", 0
        self._next()

    def _next(self) -> str:
        """Go to the next token; the one before it."""
        before = self.token
        rest = self.text[self.place :]
        self.start = self.place + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind, self.token = "end", ""
            return before
        match = _TOKEN.match(self.text, self.place)
        if match is None:
            raise self._fault(f"a {self.of}, a number or a sign", self.text[self.start :].split()[0])
        self.kind, self.token, self.place = match.lastgroup or "", match[match.lastgroup or 0], match.end()
        return before

    def _fault(self, expected: str, found: str | None = None) -> UsageError:
        found = (f"'{self.token}'" if self.token else "the end") if found is None else f"'{found}'"
        return UsageError(
            f"{self.of} '{self.text}': found {found} at column {self.start + 1}, expected {expected}; write for "
            f"example '{self.example}'."
        )

    def _take(self, sign: str) -> None:
        if self.token != sign or self.kind != "sign":
            raise self._fault(f"'{sign}'")
        self._next()

    def sum(self) -> tuple[Summand, ...]:
        """All terms."""
        terms = [self._term(-1.0 if self._skip("-") else 1.0)]
        while self.kind != "end":
            if self.token not in ("+", "-"):
                raise self._fault("'+', '-' or the end")
            terms.append(self._term(-1.0 if self._next() == "-" else 1.0))
        return tuple(terms)

    def _skip(self, sign: str) -> bool:
        found = self.kind == "sign" and self.token == sign
        if found:
            self._next()
        return found

    def _term(self, coefficient: float) -> Summand:
        if self.kind == "number":
            coefficient *= float(self.token)
            if not math.isfinite(coefficient) or coefficient == 0:
                raise self._fault("a finite number that is not 0")
            self._next()
            self._take("*")
        if self.kind != "word":
            raise self._fault(f"the name of a {self.of}")
        name = self._next()
        return Summand(name, coefficient, self._options() if self._skip("(") else {})

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        while not self._skip(")"):
            if self.kind != "word" or self.token in options:
                raise self._fault("the name of another option")
            name = self._next()
            self._take("=")
            options[name] = self._value()
            if self.token != ")":
                self._take(",")
        return options

    def _value(self) -> Any:
        if self._skip("["):
            items = []
            while not self._skip("]"):
                items.append(self._value())
                if self.token != "]":
                    self._take(",")
            return items
        negative = self._skip("-")
        if self.kind == "number":
            number = int(self.token) if self.token.isdigit() else float(self.token)
            self._next()
            return -number if negative else number
        if negative or self.kind not in ("word", "text"):
            raise self._fault("a value")
        kind, token = self.kind, self._next()
        return token[1:-1] if kind == "text" else _CONSTANTS.get(token, token)
