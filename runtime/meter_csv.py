"""An external power meter that logs to CSV: Otii, Joulescope, PPK2, a laboratory supply, an INA on another board.

One header row. Time: `time_s`, `timestamp_ms`, ... (s, ms, us, ns; s without a unit). Power: `power_w`, `power_mw`,
`power_uw`; or current (`current_a`, `_ma`, `_ua`) with a voltage column (`voltage_v`, `_mv`) or the supply's fixed
voltage. Case, spaces and brackets do not matter: "Timestamp (ms)", "Current(uA)" are read as above.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from subbyte.errors import EnergyError
from subbyte.runtime.energy import Energy, Reading, checked, energy_of

Float64 = npt.NDArray[np.float64]

MAX_BYTES = 1 << 30
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_POWER = {"w": 1.0, "mw": 1e-3, "uw": 1e-6}
_CURRENT = {"a": 1.0, "ma": 1e-3, "ua": 1e-6, "na": 1e-9}
_VOLTAGE = {"v": 1.0, "mv": 1e-3, "uv": 1e-6}


def read_csv(path: Path, volts: float | None = None) -> tuple[Float64, Float64]:
    """Times in seconds and power in watts, float64 [samples], of a meter's CSV; raises EnergyError for other files.

    `volts` is the supply's voltage, for a meter that logs the current alone.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EnergyError(
                f"'{path}' has more than {MAX_BYTES} bytes: export only the part of the log that is needed"
            )
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [re.sub(r"[^a-z]+", "_", name.lower().replace("µ", "u")).strip("_") for name in next(rows, [])]
            time_at, time_unit = _column(header, ("time", "timestamp", "t"), _TIME, "s")
            power_at, power_unit = _column(header, ("power", "p", "main_power"), _POWER, "w")
            current_at, current_unit = _column(header, ("current", "i", "main_current"), _CURRENT, "a")
            voltage_at, voltage_unit = _column(header, ("voltage", "v", "main_voltage"), _VOLTAGE, "v")
            product = current_at is not None and (voltage_at is not None or volts is not None)
            if time_at is None or (power_at is None and not product):
                raise EnergyError(
                    f"'{path}' has columns {', '.join(header) or 'none'}: expected a time (time_s) and a power "
                    f"(power_w), or a current (current_ma) with a voltage (voltage_v, or volts=)"
                )
            used = [at for at in (time_at, power_at, current_at, voltage_at) if at is not None]
            table = np.array([[float(row[at]) for at in used] for row in rows if row], np.float64).reshape(
                -1, len(used)
            )
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
        raise EnergyError(
            f"cannot read the meter's log '{path}': {error}. Export it as CSV with one header row."
        ) from error
    column = {at: table[:, index] for index, at in enumerate(used)}
    seconds = column[time_at] * time_unit
    if power_at is not None:
        watts = column[power_at] * power_unit
    else:
        supply = column[voltage_at] * voltage_unit if voltage_at is not None else np.float64(volts or 0.0)
        watts = column[current_at if current_at is not None else 0] * current_unit * supply
    if len(seconds) < 2 or not np.isfinite(table).all() or (np.diff(seconds) < 0).any():
        raise EnergyError(f"'{path}' holds {len(seconds)} samples that are not all finite and in order of time")
    return seconds, watts


def _column(
    header: list[str], names: tuple[str, ...], units: dict[str, float], default: str
) -> tuple[int | None, float]:
    for name in names:
        for unit, factor in units.items():
            if f"{name}_{unit}" in header:
                return header.index(f"{name}_{unit}"), factor
        if name in header:
            return header.index(name), units[default]
    return None, 1.0


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
    """A meter whose CSV grows while we measure; its times plus `offset_s` are Unix seconds of this machine."""

    def __init__(
        self,
        path: str | Path,
        volts: float | None = None,
        offset_s: float = 0.0,
        wait_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
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
