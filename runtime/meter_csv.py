"""An external power meter that logs to CSV: Otii, Joulescope, PPK2, a laboratory supply, an INA on another board.

One header row. Time: `time_s`, `timestamp_ms`, ... (s, ms, us, ns). Power: `power_w`, `power_mw`, `power_uw`; or
current (`current_a`, `_ma`, `_ua`, `_na`) with a voltage column (`voltage_v`, `_mv`, `_uv`) or the supply's voltage. A
unit may be in brackets ("Timestamp (ms)", "Current(uA)") or in a row below the header; without any it is s, W, A, V.
A unit that is not known is refused. meter_table.py says which spellings of CSV are read.
"""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from subbyte.errors import EnergyError, UsageError
from subbyte.files import limits
from subbyte.files.plain import read_plain
from subbyte.runtime.energy import Energy, Reading, checked, energy_of
from subbyte.runtime.meter_table import Log, numbers, read_log

Float64 = npt.NDArray[np.float64]

_MICRO = str.maketrans("\u00b5\u03bc", "uu")  # the micro sign, and the Greek letter that looks like it


@dataclass(frozen=True)
class _Quantity:
    names: tuple[str, ...]
    units: dict[str, float]  # the first is that of a column without a unit


TIME = _Quantity(("time", "timestamp", "t"), {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9})
POWER = _Quantity(("power", "p", "main_power"), {"W": 1.0, "mW": 1e-3, "uW": 1e-6})
CURRENT = _Quantity(("current", "i", "main_current"), {"A": 1.0, "mA": 1e-3, "uA": 1e-6, "nA": 1e-9})
VOLTAGE = _Quantity(("voltage", "v", "main_voltage"), {"V": 1.0, "mV": 1e-3, "uV": 1e-6})


def read_csv(path: Path, volts: float | None = None) -> tuple[Float64, Float64]:
    """Times in seconds and power in watts, float64 [samples], of a meter's CSV; raises EnergyError for other files.

    `volts` is the supply's voltage, for a meter that logs the current alone.
    """
    if volts is not None and not (math.isfinite(volts) and volts > 0):
        raise EnergyError(f"the supply's voltage is {volts}, expected volts above 0")
    try:
        log = read_log(read_plain(path, limits.METER_LOG_BYTES))
        seconds_in = _column(log, TIME)
        factors = [found] if (found := _column(log, POWER)) else [_column(log, CURRENT), _column(log, VOLTAGE)]
        if len(factors) == 2 and factors[1] is None and volts is not None:
            factors[1] = (-1, volts)
        if seconds_in is None or None in factors:
            raise EnergyError(
                f"'{path}' has columns {', '.join(log.header) or 'none'}: expected a time (time_s) and a power "
                f"(power_w), or a current (current_ma) with a voltage (voltage_v, or volts=)"
            )
        columns = [seconds_in, *(column for column in factors if column is not None)]
        read = [at for at, _ in columns if at >= 0]
        table = np.array(list(numbers(log, read)), np.float64).reshape(-1, len(read))
    except (OSError, csv.Error, ValueError) as error:
        raise EnergyError(
            f"cannot read the meter's log '{path}': {error}. Export it as CSV with one header row."
        ) from error
    values = [table[:, read.index(at)] * unit if at >= 0 else np.full(len(table), unit) for at, unit in columns]
    with np.errstate(over="ignore"):
        seconds, watts = values[0], np.prod(values[1:], axis=0)
    if len(seconds) < 2 or not np.isfinite([seconds, watts]).all() or (np.diff(seconds) < 0).any():
        raise EnergyError(f"'{path}' holds {len(seconds)} samples that are not all finite and in order of time")
    return seconds, watts


def _column(log: Log, quantity: _Quantity) -> tuple[int, float] | None:
    """The column of a quantity, and its unit's factor to the base unit; raises ValueError if either is ambiguous."""
    found: list[tuple[int, float]] = []
    unclear = []
    for at, title in enumerate(log.header):
        written = _unit(title, quantity.names)
        if written is None:
            continue
        below = log.units[at].strip("()[] ") if at < len(log.units) else ""
        try:
            factors = {_factor(unit, quantity.units) for unit in (written, below) if unit}
            if len(factors) > 1:
                raise ValueError(f"column '{title}' has the unit '{below}' in the row below")
        except ValueError as error:
            unclear.append(f"column '{title}': {error}")
            continue
        found.append((at, factors.pop() if factors else 1.0))
    if len(found) > 1:
        titles = "' and '".join(log.header[at] for at, _ in found)
        raise ValueError(f"columns '{titles}' are both {quantity.names[0]}: leave one")
    if not found and unclear:
        raise ValueError("; ".join(unclear))
    return found[0] if found else None


def _unit(title: str, names: tuple[str, ...]) -> str | None:
    """The unit in a column's title as it is written, or ""; None where the column is not of that quantity."""
    brackets = re.fullmatch(r"(.*?)[\s_]*[(\[](.*)[)\]]\s*", title)
    words = [word for word in re.split(r"[\s_./-]+", brackets[1] if brackets else title) if word]
    if "_".join(words).lower() in names:
        return brackets[2].strip() if brackets else ""
    if not brackets and "_".join(words[:-1]).lower() in names:
        return words[-1]
    return None


def _factor(unit: str, units: dict[str, float]) -> float:
    plain = unit.translate(_MICRO)
    if plain.startswith("M"):  # mega, or milli in capitals
        raise ValueError(f"unit '{unit}' may be mega or milli: write it with a small m")
    for known, factor in units.items():
        if plain.lower() == known.lower():
            return factor
    raise ValueError(f"unit '{unit}' is not known, expected {', '.join(units)}")


def integrate(seconds: Float64, watts: Float64, start_s: float, end_s: float, source: str) -> Reading:
    """Joules between two times of the log, by the trapezoid rule; raises EnergyError where the log does not reach."""
    if not seconds[0] <= start_s < end_s <= seconds[-1]:
        raise EnergyError(
            f"{source} covers {seconds[0]:.3f} .. {seconds[-1]:.3f} s, the window is {start_s:.3f} .. {end_s:.3f} s: "
            f"log for longer, and set both clocks alike or give offset_s"
        )
    inside = (seconds > start_s) & (seconds < end_s)
    times = np.concatenate(([start_s], seconds[inside], [end_s]))
    values = np.interp(times, seconds, watts)
    joules = float(np.sum(0.5 * (values[1:] + values[:-1]) * np.diff(times)))
    return Reading(joules, end_s - start_s, int(inside.sum()), {"meter": joules})


def energy_from_csv(
    path: str | Path,
    window: tuple[float, float],
    idle: tuple[float, float],
    calls: int = 1,
    volts: float | None = None,
) -> Energy:
    """Energy of `calls` calls in a log, between the times `window`, net of the power between the times `idle`.

    For devices that run by themselves, as a microcontroller beside the meter. Raises EnergyError.
    """
    path = Path(path)
    seconds, watts = read_csv(path, volts)
    source = f"external meter, {path.name}"
    during = checked(integrate(seconds, watts, *window, source), source, "window")
    return energy_of(during, checked(integrate(seconds, watts, *idle, source), source, "idle window"), calls, source)


class CsvMeter:
    """A meter whose CSV grows while we measure; its times plus `offset_s` are Unix seconds of this machine.

    Raises UsageError where there is no such file, EnergyError for one that is no log.
    """

    def __init__(
        self,
        path: str | Path,
        volts: float | None = None,
        offset_s: float = 0.0,
        wait_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not Path(path).is_file():
            missing = f"there is no file '{path}'" if path else "it names no file"
            raise UsageError(
                f"energy meter 'csv:{path}': {missing}. Expected csv:PATH, the log that the meter is writing."
            )
        self._path = Path(path)
        self._volts, self._offset, self._wait, self._clock = volts, offset_s, wait_s, clock
        self.source = f"external meter, {self._path.name}"
        self._started = 0.0
        read_csv(self._path, volts)

    def start(self) -> None:
        self._started = self._clock()

    def stop(self) -> Reading:
        """The energy since start; waits up to `wait_s` for the log to reach now."""
        end = self._clock()
        patience = time.perf_counter() + self._wait
        while True:
            seconds, watts = read_csv(self._path, self._volts)
            if seconds[-1] + self._offset >= end or time.perf_counter() > patience:
                return integrate(seconds + self._offset, watts, self._started, end, self.source)
            time.sleep(0.05)
