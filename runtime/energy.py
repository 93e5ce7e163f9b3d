"""Measured energy: joules of a counter over a stated window, gross and net of idle. energy_model.py has the modelled.

A meter is a class with `start()` and `stop()`; to add one, write it like those of rapl.py, hwmon.py, meter_csv.py or
zeus_meter.py and add its line to METERS, or to `make_meter` if it takes an argument. Every figure says its source;
nothing is ever estimated here.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from subbyte.errors import EnergyError, UnknownNameError

__all__ = [
    "METERS",
    "MIN_TICKS",
    "PROCESSOR_METERS",
    "Energy",
    "EnergyError",
    "Meter",
    "Reading",
    "available",
    "find_meter",
    "make_meter",
    "measure",
    "measure_window",
]

MIN_TICKS = 100  # counter updates in a window; below, the first and last tick are more than 1% of the figure

PROCESSOR_METERS = ("rapl", "hwmon")  # what covers a program on the CPU; a graphics card's counter does not

# name -> (module, class): each is made without arguments and raises EnergyError where it cannot work
METERS: dict[str, tuple[str, str]] = {
    "rapl": ("subbyte.runtime.rapl", "Rapl"),
    "hwmon": ("subbyte.runtime.hwmon", "Hwmon"),
    "zeus": ("subbyte.runtime.zeus_meter", "Zeus"),
}
CSV = ("subbyte.runtime.meter_csv", "CsvMeter")  # made with the path of its log


@dataclass(frozen=True)
class Reading:
    """What a meter saw between start and stop."""

    joules: float
    window_s: float
    ticks: int  # updates of the counter, or samples, in the window
    domains: dict[str, float]  # joules of each rail or domain that was added up


class Meter(Protocol):
    """A counter of energy."""

    source: str  # what is read, for the report: "RAPL package-0 + dram (powercap)"

    def start(self) -> None: ...

    def stop(self) -> Reading: ...


@dataclass(frozen=True)
class Energy:
    """Joules of `calls` calls: net is gross less idle_w x window_s. Both are of all that the source covers."""

    joules_gross: float
    joules_net: float
    window_s: float
    idle_w: float
    idle_window_s: float
    calls: int
    ticks: int
    domains: dict[str, float]
    source: str
    provenance: Literal["measured"] = "measured"

    @property
    def joules_per_call_gross(self) -> float:
        return self.joules_gross / self.calls

    @property
    def joules_per_call_net(self) -> float:
        return self.joules_net / self.calls

    def to_json(self) -> dict[str, Any]:
        each = {"joules_per_call_gross": self.joules_per_call_gross, "joules_per_call_net": self.joules_per_call_net}
        return {**asdict(self), **each}


def available() -> dict[str, str | None]:
    """Every known meter, and None if it works here, else the reason why not and what would help."""
    found: dict[str, str | None] = {}
    for name in METERS:
        try:
            _made(METERS[name])
            found[name] = None
        except EnergyError as error:
            found[name] = str(error)
    return found


def make_meter(name: str) -> Meter | None:
    """The meter of that name: a row of METERS, `hwmon:RAIL+RAIL` (board sensors by name), `csv:PATH` (an external
    meter's growing log), `auto` (the first of PROCESSOR_METERS that works); None for `none`.

    Raises UnknownNameError, UsageError for a log that is not there, EnergyError where the meter cannot work.
    """
    kind, _, path = name.partition(":")
    if name == "none":
        return None
    if name == "auto":
        return find_meter(PROCESSOR_METERS)
    if kind == "csv":
        return _made(CSV, path=path)
    rails = path.split("+") if kind == "hwmon" and path else None
    if rails is None and name not in METERS:
        raise UnknownNameError("energy meter", name if kind in METERS else kind, ("auto", "none", "csv", *METERS))
    try:
        return _made(METERS[kind], **({"rails": rails} if rails else {}))
    except EnergyError as error:
        others = [other for other, why in available().items() if why is None]
        works = f"Readable here: {', '.join(others)}." if others else "No other is readable here."
        raise EnergyError(
            f"energy meter '{name}' does not work here: {error} {works} Take 'csv:PATH' for the log of an external "
            f"meter, 'auto' for the first that works, or 'none' to measure no energy."
        ) from error


def _made(row: tuple[str, str], **settings: Any) -> Meter:
    """The meter of a row like those of METERS; raises EnergyError where it cannot work."""
    module, attribute = row
    meter: Meter = getattr(importlib.import_module(module), attribute)(**settings)
    return meter


def find_meter(names: Iterable[str] = tuple(METERS)) -> Meter:
    """The first meter of `names` that works here; raises EnergyError with every reason when none does."""
    reasons = []
    for name in names:
        try:
            return _made(METERS[name])
        except EnergyError as error:
            reasons.append(f"{name}: {error}")
    raise EnergyError("no energy counter can be read on this machine. " + " ".join(reasons))


def measure(
    fn: Callable[[], object], seconds: float = 2.0, *, meter: Meter | None = None, idle_seconds: float | None = None
) -> Energy:
    """Energy of calling `fn` again and again for `seconds`, after as long an idle window (or `idle_seconds`).

    `meter` defaults to `find_meter()`. Raises EnergyError when there is no counter, or when either window holds fewer
    than MIN_TICKS updates of it: measure longer.
    """

    def window(length: float) -> int:
        end, calls = time.perf_counter() + length, 0
        while calls == 0 or time.perf_counter() < end:
            fn()
            calls += 1
        return calls

    return measure_window(window, seconds, meter=meter, idle_seconds=idle_seconds)


def measure_window(
    window: Callable[[float], int],
    seconds: float,
    *,
    meter: Meter | None = None,
    idle_seconds: float | None = None,
) -> Energy:
    """As `measure`, of `window(seconds)`: it works for so long, one call at least, and returns how many it made."""
    meter = find_meter() if meter is None else meter
    meter.start()
    time.sleep(seconds if idle_seconds is None else idle_seconds)
    idle = checked(meter.stop(), meter.source, "idle window")
    window(0.0)  # warm up
    meter.start()
    try:
        calls = window(seconds)
    finally:
        reading = meter.stop()
    return energy_of(checked(reading, meter.source, "window"), idle, calls, meter.source)


def energy_of(reading: Reading, idle: Reading, calls: int, source: str) -> Energy:
    """Put a reading and an idle reading together."""
    idle_w = idle.joules / idle.window_s
    return Energy(
        joules_gross=reading.joules,
        joules_net=reading.joules - idle_w * reading.window_s,
        window_s=reading.window_s,
        idle_w=idle_w,
        idle_window_s=idle.window_s,
        calls=calls,
        ticks=reading.ticks,
        domains=reading.domains,
        source=source,
    )


def checked(reading: Reading, source: str, what: str) -> Reading:
    """The reading, or EnergyError when it rests on fewer than MIN_TICKS updates of the counter."""
    if reading.ticks < MIN_TICKS:
        need = reading.window_s * MIN_TICKS / max(1, reading.ticks)
        raise EnergyError(
            f"the {what} of {reading.window_s:.3f} s holds {reading.ticks} updates of {source}, at least {MIN_TICKS} "
            f"are needed for a figure to trust: measure for about {need:.1f} s or longer"
        )
    return reading
