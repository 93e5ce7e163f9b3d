"""How the learning rate changes over the steps of a run: its factor by the name of a schedule.

To add a schedule: write a function of the share of the steps that are done, 0 to 1, whose further parameters are its
options with their defaults, decorated with `@schedule("name")`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.options import check_options

WARMUP = 0.05  # share of the steps, where none is given


@dataclass(frozen=True)
class Schedule:
    """A factor of the learning rate; `rises`: it begins low and needs no warm-up."""

    name: str
    factor: Callable[..., float]
    rises: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def at(self, step: int, steps: int, warmup: float | None = None) -> float:
        """The factor at `step` of `steps`: linear growth in the first share `warmup`, then the schedule."""
        share = (0.0 if self.rises else WARMUP) if warmup is None else warmup
        rising = 0 if self.rises else max(1, round(share * steps))
        if step < rising:
            return (step + 1) / rising
        return self.factor(min(1.0, (step - rising) / max(1, steps - rising)), **self.options)


_SCHEDULES: dict[str, Schedule] = {}


def schedule(name: str, *, rises: bool = False) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register the decorated function as the schedule `name`."""

    def register(factor: Callable[..., float]) -> Callable[..., float]:
        if name in _SCHEDULES:
            raise RegistrationError(f"schedule '{name}' is registered already; choose another name.")
        _SCHEDULES[name] = Schedule(name, factor, rises)
        return factor

    return register


def list_schedules() -> list[str]:
    """Names of all schedules, in the order of registration."""
    return list(_SCHEDULES)


def get_schedule(name: str, options: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule `name` with these options; raises UnknownNameError, UsageError for an option that it has not."""
    if name not in _SCHEDULES:
        raise UnknownNameError("schedule", name, _SCHEDULES)
    found, given = _SCHEDULES[name], dict(options or {})
    check_options(f"schedule '{name}'", found.factor, [*inspect.signature(found.factor).parameters][1:], given)
    found.factor(0.0, **given)  # raises for an option out of its range
    return Schedule(name, found.factor, found.rises, given)


def _share(schedule: str, option: str, value: float) -> None:
    if not 0 < value < 1:
        raise UsageError(f"schedule '{schedule}': option '{option}' is {value}, expected a number between 0 and 1.")


# ---- the schedules ----


@schedule("cosine")
def cosine(done: float) -> float:
    """Half a cosine down to 0. SGDR (Loshchilov and Hutter, 2017), without restarts."""
    return 0.5 * (1 + math.cos(math.pi * done))


@schedule("linear")
def linear(done: float, end: float = 0.0) -> float:
    """A straight fall to the factor `end`."""
    if not 0 <= end <= 1:
        raise UsageError(f"schedule 'linear': option 'end' is {end}, expected a factor from 0 to 1.")
    return 1 + (end - 1) * done


@schedule("step")
def step(done: float, gamma: float = 0.1, every: float = 1 / 3) -> float:
    """A factor `gamma` more after each share `every` of the steps."""
    _share("step", "gamma", gamma)
    _share("step", "every", every)
    return float(gamma ** math.floor(done / every + 1e-9))


@schedule("constant")
def constant(done: float) -> float:
    """No change."""
    return 1.0


@schedule("one-cycle", rises=True)
def one_cycle(done: float, rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4 / 25) -> float:
    """Half a cosine up from the factor `start` in the share `rise` of the steps, then one down to `end`.

    Super-Convergence (Smith and Topin, 2018), with the cosines of torch's OneCycleLR; momentum stays.
    """
    for option, value in (("rise", rise), ("start", start), ("end", end)):
        _share("one-cycle", option, value)
    if done < rise:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * done / rise))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))
