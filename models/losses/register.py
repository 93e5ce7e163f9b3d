"""The register of losses. To add one: a function with `@loss(...)` in a file of this folder (docs/add-a-loss.md).

@loss("gce", needs=("logits", "label"), source="Zhang and Sabuncu, 2018, eq. 6", good_for=("noisy labels",))
def generalized_cross_entropy(outputs: Outputs, targets: Targets, q: Share = 0.7) -> Tensor:
    \"\"\"(1 - p_y^q) / q.\"\"\"
    return (1 - (q * at_label(outputs.log_probabilities, targets.label)).exp()) / q
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_type_hints

import torch
from torch import Tensor

from subbyte.errors import RegistrationError, UnknownNameError, one_line
from subbyte.models.losses.entry import TAPS, LossEntry
from subbyte.models.losses.example import SAMPLES, example_for
from subbyte.models.losses.memory import QueueOf, TableOf
from subbyte.models.losses.outputs import NEEDS
from subbyte.models.losses.term import Term
from subbyte.models.options import Within, mistyped, range_of

Function = Callable[..., Tensor]
_LOSSES: dict[str, LossEntry] = {}
_ALIASES: dict[str, str] = {}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*")


def loss(
    name: str,
    *,
    needs: tuple[str, ...],
    source: str,
    alias: str = "",
    good_for: tuple[str, ...] = (),
    per: Literal["position", "sample"] = "position",
    coupled: bool = False,
    equivariant: bool = True,
    learned: tuple[str, ...] = (),
    memory: Mapping[str, QueueOf | TableOf] | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function (outputs, targets, memory and options with defaults) -> one value per row [M].

    `needs`: names of `outputs.NEEDS`, "label|soft" where one of two is enough; `source`: author, year, equation; the
    docstring's first line is the summary. `per`: whether the axes of a label after the first are positions, each a row,
    or part of a sample. `coupled`: a row's value depends on the other rows; under several processes the function then
    sees the rows of all. `equivariant`: another order of the rows gives the same values in that order. `learned`:
    options that are trained, from their value on. `memory`: what is kept between steps, by parameter.

    Raises RegistrationError for a part that is missing or wrong; the function is run once on a small float64 example.
    """

    def register(function: Function) -> Function:
        entry = LossEntry(
            name, function, frozenset(needs), source, alias, tuple(good_for), per, coupled, equivariant, tuple(learned),
            dict(memory or {}),
        )  # fmt: skip
        for fault in (_named_wrong(entry), _incomplete(entry), _wrong_parameter(entry)):
            if fault:
                raise RegistrationError(f"loss '{name}': {fault}; see docs/add-a-loss.md.")
        _run_on_example(entry)
        _LOSSES[name] = entry
        if alias:
            _ALIASES[alias] = name
        return function

    return register


def get_loss(name: str) -> LossEntry:
    """The entry of the loss of this name or alias; raises `UnknownNameError` with the nearest name."""
    entry = _LOSSES.get(_ALIASES.get(name, name))
    if entry is None:
        raise UnknownNameError("loss", name, [*_LOSSES, *_ALIASES])
    return entry


def list_losses() -> list[str]:
    """Names of all losses, sorted, without aliases."""
    return sorted(_LOSSES)


def _named_wrong(entry: LossEntry) -> str:
    for name in (entry.name, *([entry.alias] if entry.alias else [])):
        if not _NAME.fullmatch(name):
            return f"the name '{name}' must be lower case words with hyphens, such as 'cross-entropy'"
        if name in _LOSSES or name in _ALIASES:
            return f"the name '{name}' is registered already; choose another"
    return ""


def _incomplete(entry: LossEntry) -> str:
    if not entry.source.strip():
        return "no source: say author, year and equation"
    if not entry.summary:
        return "no summary: it is the first line of the function's docstring"
    if not entry.needs:
        return f"no needs: name what it reads, of {', '.join(NEEDS)}"
    unknown = sorted({name for names in entry.alternatives() for name in names if name not in NEEDS})
    return f"unknown need '{unknown[0]}', expected some of {', '.join(NEEDS)}" if unknown else ""


def _wrong_parameter(entry: LossEntry) -> str:
    parameters = list(inspect.signature(entry.function).parameters)
    if parameters[:2] != ["outputs", "targets"]:
        return f"the function takes ({', '.join(parameters)}), expected (outputs, targets, ...)"
    for name, declared in entry.memory.items():
        if name not in parameters:
            return f"the function has no parameter '{name}' for its memory"
        if declared.of not in entry.needs:
            return f"memory '{name}' is of '{declared.of}', expected one of its needs: {', '.join(sorted(entry.needs))}"
        if isinstance(declared, QueueOf) and not isinstance(entry.options.get(declared.length), int):
            return f"memory '{name}' is as long as option '{declared.length}' says, expected an option that is an int"
    hints = get_type_hints(entry.function, include_extras=True)
    for name, default in entry.options.items():
        if default is inspect.Parameter.empty:
            return f"option '{name}' has no default"
        if name not in hints:
            return f"option '{name}' has no annotation"
        if name in TAPS.values():
            return f"option '{name}' is the name of an option that names modules; choose another"
        if wrong := mistyped(entry.function, {name: default}):
            return wrong
    for name in entry.learned:
        if not isinstance(entry.options.get(name), float):
            return f"'{name}' is learned but is not an option with a float as default"
        if range_of(hints[name]) not in (None, Within(0)):
            return f"option '{name}' is learned within {range_of(hints[name])}; take Positive or a float of any value"
    return ""


def _run_on_example(entry: LossEntry) -> None:
    outputs, targets = example_for(entry)
    where = f"loss '{entry.name}': on the example of {SAMPLES} float64 samples it"
    try:
        term = Term(entry).double()
        term.prepare(outputs, samples=SAMPLES)
        with torch.no_grad():
            _, values = term(outputs, targets)
    except Exception as error:  # whatever a function raises that was never run
        hint = "; define what it calls above it" if isinstance(error, NameError) else ""
        raise RegistrationError(f"{where} fails ({type(error).__name__}: {one_line(error)}){hint}.") from error
    if values.dtype != torch.float64 or not bool(values.isfinite().all()):
        raise RegistrationError(f"{where} gives {values.dtype} {values.tolist()}, expected finite float64 values.")
