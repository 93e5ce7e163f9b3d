"""The register of tasks. To add one: a class with `@task(...)` in a file of this folder (docs/add-a-task.md)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.losses import Objective
from subbyte.models.losses.outputs import NEEDS
from subbyte.models.options import check_options
from subbyte.models.tasks.base import Task
from subbyte.models.tasks.score import Metric

_TASKS: dict[str, type[Task]] = {}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z][a-z0-9]*)*")
_METRIC = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
AnyTask = TypeVar("AnyTask", bound=type[Task])


def task(name: str) -> Callable[[AnyTask], AnyTask]:
    """Register the decorated frozen dataclass, a subclass of `Task`, as the task `name`.

    The first line of its docstring is the summary. Raises RegistrationError for a part that is missing or wrong, and
    for a `loss` that the task cannot feed.
    """

    def register(made: AnyTask) -> AnyTask:
        fault = _fault(name, made)
        if fault:
            raise RegistrationError(f"task '{name}': {fault}; see docs/add-a-task.md.")
        made.name, made.summary = name, _summary(made)
        _TASKS[name] = made
        return made

    return register


def get_task(name: str, **options: Any) -> Task:
    """The task `name` with these options; raises `UnknownNameError` with the nearest name, UsageError for an option."""
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    made = _TASKS[name]
    check_options(f"task '{name}'", made, [one.name for one in fields(made)], options)
    return made(**options)


def list_tasks() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(_TASKS)


def _fault(name: str, made: type[Task]) -> str:
    for find in (_named_wrong, _incomplete, _wrong_option, _wrong_class_variable):
        fault = find(name, made)
        if fault:
            return fault
    return ""


def _named_wrong(name: str, made: type[Task]) -> str:
    if not _NAME.fullmatch(name):
        return f"the name '{name}' must be lower case words with hyphens, such as 'language-modelling'"
    return f"the name '{name}' is registered already; choose another" if name in _TASKS else ""


def _incomplete(name: str, made: type[Task]) -> str:
    if not (inspect.isclass(made) and issubclass(made, Task) and is_dataclass(made)):
        return "it is not a dataclass that derives from Task"
    missing = sorted(getattr(made, "__abstractmethods__", ()))
    if missing:
        return f"it does not define {', '.join(missing)}"
    if "__dataclass_params__" not in made.__dict__:
        return "it is not a dataclass of its own: decorate it with @dataclass(frozen=True)"
    return "" if _summary(made) else "no summary: it is the first line of the class's docstring"


def _wrong_option(name: str, made: type[Task]) -> str:
    hints = get_type_hints(made, include_extras=True)
    for one in fields(made):
        try:
            check_options(f"task '{name}'", made, [one.name], {one.name: one.default})
        except UsageError:
            return f"option '{one.name}' has no default of the type {hints[one.name]}"
    return ""


def _wrong_class_variable(name: str, made: type[Task]) -> str:
    unknown = sorted(made.gives - NEEDS.keys())
    if not made.gives or unknown:
        return f"gives {unknown or 'nothing'}, expected some of {', '.join(NEEDS)}"
    one = made()
    if not isinstance(one.metric, Metric) or not _METRIC.fullmatch(one.metric.name):
        return "its metric is not a Metric with a name of lower case words and underscores, such as 'mean_iou'"
    try:
        Objective(one.loss).check(one.gives)
    except UsageError as error:
        return f"its loss '{one.loss}' cannot be: {error}"
    return ""


def _summary(made: type[Task]) -> str:
    """The first line of its own docstring; a dataclass without one has its signature there."""
    text = (made.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return "" if text.startswith(f"{made.__name__}(") else text
