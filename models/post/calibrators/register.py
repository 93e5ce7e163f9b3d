"""The register of calibrators. To add one: a function with `@calibrator(...)` in a file of this folder.

@calibrator("percentile", source="Wu et al., 2020, section 5")
def percentile(x: Tensor, low: float, high: float, percent: Percent = 99.99) -> Tensor:
    \"\"\"the largest code is at this percentile of |x|\"\"\"
    return torch.quantile(x.abs(), percent / 100, dim=1) / high
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import torch
from torch import Tensor

from subbyte.errors import RegistrationError, UnknownNameError, UsageError, one_line
from subbyte.models.options import mistyped
from subbyte.models.quant.statistics import StepOf

_CALIBRATORS: dict[str, Calibrator] = {}
_GIVEN = ("x", "low", "high")


@dataclass(frozen=True)
class Calibrator:
    """A registered calibrator: a function of rows x [rows, elements] and the codes low..high to a step for each row."""

    name: str
    function: Callable[..., Tensor]
    source: str
    rows: bool = True  # whether a row may be short, as the weights of one output channel are

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.function).parameters.items()
            if name not in _GIVEN
        }

    def step_of(self, options: Mapping[str, Any]) -> StepOf:
        """The function with these options; raises UnknownNameError, or UsageError for a value that cannot be."""
        for option in options:
            if option not in self.options:
                raise UnknownNameError(f"option of calibrator '{self.name}'", option, self.options)
        wrong = mistyped(self.function, options)
        if wrong:
            raise UsageError(f"calibrator '{self.name}': {wrong}.")
        return partial(self.function, **options)


def calibrator(
    name: str, *, source: str, rows: bool = True
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated function (x, low, high and options with defaults) -> steps [rows].

    x is float32 [rows, elements], finite; low and high are the smallest and largest code. A row of zeros has the step
    0. `source`: author, year; the docstring's first line is the summary. `rows`: whether it also serves weights, of
    which a row may have few. Raises RegistrationError for a part that is missing or wrong; the function is run once.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        entry = Calibrator(name, function, source, rows)
        fault = _incomplete(entry) or _wrong_on_example(entry)
        if fault:
            raise RegistrationError(f"calibrator '{name}': {fault}.")
        _CALIBRATORS[name] = entry
        return function

    return register


def get_calibrator(name: str) -> Calibrator:
    """The calibrator of this name; raises UnknownNameError with the nearest name."""
    if name not in _CALIBRATORS:
        raise UnknownNameError("calibrator", name, _CALIBRATORS)
    return _CALIBRATORS[name]


def list_calibrators() -> list[str]:
    """Names of all calibrators, sorted."""
    return sorted(_CALIBRATORS)


def _incomplete(entry: Calibrator) -> str:
    if entry.name in _CALIBRATORS:
        return "registered twice; choose another name"
    if not entry.source.strip() or not entry.summary:
        return "no source or no docstring; both are needed"
    if tuple(inspect.signature(entry.function).parameters)[:3] != _GIVEN:
        return f"takes ({', '.join(inspect.signature(entry.function).parameters)}), expected (x, low, high, ...)"
    hints = get_type_hints(entry.function)
    for option, default in entry.options.items():
        if default is inspect.Parameter.empty or option not in hints:
            return f"option '{option}' has no default or no type; both are needed"
    return mistyped(entry.function, entry.options) or ""


def _wrong_on_example(entry: Calibrator) -> str:
    x = torch.linspace(-1, 2, 256).reshape(1, -1)
    x = torch.cat([x, torch.zeros_like(x)])
    try:
        step = entry.function(x, -8.0, 7.0)
    except Exception as error:  # whatever a function raises that was never run
        return f"on an example of two rows it fails ({type(error).__name__}: {one_line(error)})"
    if step.shape != (2,) or not 0 < float(step[0]) < 10 or float(step[1]) != 0:
        return f"for a row from -1 to 2 and a row of zeros it gives {step.tolist()}, expected a positive step and 0"
    return ""
