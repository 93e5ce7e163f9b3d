"""The register of post-training steps. To add one: a function with `@step(...)` in a file of this folder
(docs/add-a-post-step.md).

@step("batch-norm", source="Hubara et al., 2020, section 3.4", needs=(Calibration,), changes="statistics")
def batch_norm(model: nn.Module, batches: Batches, recipe: Recipe) -> nn.Module:
    \"\"\"running statistics of batch norms, as the quantized model gives them\"\"\"
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from torch import nn

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.losses.composition import parse_call
from subbyte.models.options import mistyped
from subbyte.models.post.calibration import Batches, Calibration
from subbyte.models.quant import Recipe

# What a step changes, in the order in which steps run; what comes later is found for what came before.
CHANGES = {
    "ranges": "of weights and activations, in float; the calibration follows",
    "weights": "to which codes they are rounded",
    "statistics": "of batch norms",
    "biases": "of layers, or means of their batch norms",
}
_GIVEN = ("model", "batches", "recipe")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*")
_STEPS: dict[str, Step] = {}


@dataclass(frozen=True)
class Step:
    """A registered step: a function (model, batches, recipe, *, options) -> model."""

    name: str
    function: Callable[..., nn.Module]
    source: str
    needs: tuple[type, ...]
    changes: str

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults."""
        parameters = inspect.signature(self.function).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in _GIVEN}

    @property
    def after_calibration(self) -> bool:
        """Whether the model is calibrated when the step gets it."""
        return Calibration in self.needs


@dataclass(frozen=True)
class Call:
    """A step with its options, as it is asked for."""

    step: Step
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module, batches: Batches, recipe: Recipe) -> nn.Module:
        return self.step.function(model, batches, recipe, **self.options)


def step(
    name: str, *, source: str, needs: Sequence[type], changes: str
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the decorated function (model, batches, recipe, *, options with defaults) -> model.

    The model is quantized and in eval mode; the step changes it in place and returns it. `needs`: (Calibration,) where
    the model must be calibrated, () where the step comes before. `changes`: one of CHANGES; steps run in that order.
    `source`: author, year, equation; the docstring's first line is the summary.

    Raises RegistrationError for a part that is missing or wrong.
    """

    def register(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        entry = Step(name, function, source, tuple(needs), changes)
        fault = _incomplete(entry) or _wrong_parameter(entry)
        if fault:
            raise RegistrationError(f"post-training step '{name}': {fault}; see docs/add-a-post-step.md.")
        _STEPS[name] = entry
        return function

    return register


def get_step(name: str) -> Step:
    """The step of this name; raises UnknownNameError with the nearest name."""
    if name not in _STEPS:
        raise UnknownNameError("post-training step", name, _STEPS)
    return _STEPS[name]


def list_steps() -> list[str]:
    """Names of all steps, in the order in which they may run."""
    order = list(CHANGES)
    return sorted(_STEPS, key=lambda name: (order.index(_STEPS[name].changes), name))


def calls_of(texts: Sequence[str]) -> tuple[Call, ...]:
    """The steps that texts such as "adaround(iterations=500)" ask for; raises UsageError for another order, too."""
    calls: list[Call] = []
    for text in texts:
        asked = parse_call(text, "step", "adaround(iterations=500)")
        entry = get_step(asked.name)
        for option in asked.options:
            if option not in entry.options:
                raise UnknownNameError(f"option of step '{entry.name}'", option, entry.options)
        wrong = mistyped(entry.function, asked.options)
        if wrong:
            raise UsageError(f"step '{entry.name}': {wrong}.")
        calls.append(Call(entry, asked.options))
    _refuse_order(calls)
    return tuple(calls)


def _refuse_order(calls: Sequence[Call]) -> None:
    names = [call.step.name for call in calls]
    order = list(CHANGES)
    right = sorted(names, key=lambda name: order.index(get_step(name).changes))
    if len(set(names)) < len(names):
        raise UsageError(f"steps {', '.join(names)}: one is asked for twice; leave one out.")
    if names != right:
        raise UsageError(
            f"steps {', '.join(names)}: a step that changes {' must come before one that changes '.join(order)}; ask "
            f"for {', '.join(right)}."
        )


def _incomplete(entry: Step) -> str:
    if not _NAME.fullmatch(entry.name):
        return "the name must be lower case words with hyphens, such as 'bias-correction'"
    if entry.name in _STEPS:
        return "the name is registered already; choose another"
    if not entry.source.strip():
        return "no source: say author, year and equation"
    if not entry.summary:
        return "no summary: it is the first line of the function's docstring"
    if entry.changes not in CHANGES:
        return f"changes '{entry.changes}', expected one of {', '.join(CHANGES)}"
    if entry.needs not in ((), (Calibration,)):
        return f"needs {entry.needs}, expected () or (Calibration,)"
    if entry.after_calibration == (entry.changes == "ranges"):
        return "a step that changes ranges comes before the calibration, and any other after: needs=(Calibration,)"
    return ""


def _wrong_parameter(entry: Step) -> str:
    parameters = inspect.signature(entry.function).parameters
    if tuple(parameters)[:3] != _GIVEN:
        return f"the function takes ({', '.join(parameters)}), expected (model, batches, recipe, *, options)"
    hints = get_type_hints(entry.function, include_extras=True)
    for name in entry.options:
        if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            return f"option '{name}' is not after *"
        if parameters[name].default is inspect.Parameter.empty or name not in hints:
            return f"option '{name}' has no default or no type; both are needed"
    if wrong := mistyped(entry.function, entry.options):
        return wrong
    returned = hints.get("return")
    gives_module = isinstance(returned, type) and issubclass(returned, nn.Module)
    return "" if gives_module and not get_args(returned) else "the function must be annotated to return the nn.Module"
