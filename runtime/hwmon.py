"""Board sensors in Linux hwmon: energy counters, power sensors, or volts times amperes (INA3221 on Jetson boards).

Energy counters (`energy<i>_input`, microjoules) are read at both ends; power (`power<i>_input`, microwatts, or
`in<i>_input` millivolts x `curr<i>_input` milliamperes) is sampled and added up by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from subbyte.errors import EnergyError
from subbyte.runtime.energy import Reading
from subbyte.runtime.sampling import Sampler

HWMON = Path("/sys/class/hwmon")
PERIOD_S = 0.005
COUNTER_TICK_S = 0.001
# Rails that already include the others: where one is there, it alone is the total.
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "TOTAL")
# Sensors of a whole board or processor; those of disks, fans or graphics cards are taken only by name.
DEVICES = ("ina3221", "ina2xx", "ina219", "ina226", "ina228", "ina230", "ina231", "ina238")


@dataclass
class _Rail:
    name: str
    watts: Callable[[], float] | None  # None: a counter
    counter: Path | None = None
    period_s: float = 0.0  # in which the sensor has a new value
    first_j: float = 0.0
    joules: float = 0.0
    last: tuple[float, float] | None = field(default=None)  # time, watts


class Hwmon:
    """Joules of the chosen rails, by label or `device/channel`; default: the board's total, else all of one device.

    Raises EnergyError where no such sensor can be read.
    """

    def __init__(self, root: Path = HWMON, rails: Iterable[str] | None = None, period_s: float = PERIOD_S) -> None:
        names = None if rails is None else list(rails)
        self._rails = _choose(_find(root, names), names, root)
        self.source = f"hwmon {' + '.join(rail.name for rail in self._rails)}"
        self._sampler = Sampler(self._sample, max(period_s, *(rail.period_s for rail in self._rails)))
        self._samples = 0
        self._first = self._last = 0.0

    def start(self) -> None:
        self._samples = 0
        for rail in self._rails:
            rail.joules, rail.last = 0.0, None
            if rail.counter is not None:
                rail.first_j = _number(rail.counter) / 1e6
        self._first = 0.0
        self._sampler.start()

    def stop(self) -> Reading:
        self._sampler.stop()
        window = self._last - self._first
        for rail in self._rails:
            if rail.counter is not None:
                rail.joules = _number(rail.counter) / 1e6 - rail.first_j
                if rail.joules < 0:
                    raise EnergyError(f"counter {rail.counter} went backwards: it was reset. Measure again.")
        ticks = self._samples if any(rail.watts for rail in self._rails) else int(window / COUNTER_TICK_S)
        domains = {rail.name: rail.joules for rail in self._rails}
        return Reading(sum(domains.values()), window, ticks, domains)

    def _sample(self, now: float) -> None:
        self._first, self._last = self._first or now, now
        for rail in self._rails:
            if rail.watts is None:
                continue
            watts = rail.watts()
            if rail.last is not None:
                before, last = rail.last
                rail.joules += 0.5 * (last + watts) * (now - before)
            rail.last = (now, watts)
        self._samples += 1


def _find(root: Path, wanted: list[str] | None) -> dict[str, list[_Rail]]:
    """The rails of each device, by `name` of the device."""
    devices: dict[str, list[_Rail]] = {}
    for folder in sorted(root.glob("hwmon*")):
        device = _text(folder / "name") or folder.name
        if wanted is None and device not in DEVICES:
            continue
        rails = [*_counters(folder), *_powers(folder)] or _products(folder)
        interval = _text(folder / "update_interval")  # milliseconds
        for rail in rails:
            rail.period_s = int(interval) / 1000 if interval and interval.isdigit() else 0.0
        if rails:
            devices.setdefault(device, []).extend(rails)
    return devices


def _counters(folder: Path) -> list[_Rail]:
    return [_Rail(_label(folder, "energy", path), None, path) for path in sorted(folder.glob("energy[0-9]*_input"))]


def _powers(folder: Path) -> list[_Rail]:
    if any(folder.glob("energy[0-9]*_input")):
        return []
    return [
        _Rail(_label(folder, "power", path), partial(_watts, path)) for path in sorted(folder.glob("power[0-9]*_input"))
    ]


def _products(folder: Path) -> list[_Rail]:
    """Volts times amperes, where both are measured."""
    rails = []
    for current in sorted(folder.glob("curr[0-9]*_input")):
        volts = folder / current.name.replace("curr", "in")
        if volts.exists():
            rails.append(_Rail(_label(folder, "in", volts), partial(_volts_times_amperes, volts, current)))
    return rails


def _watts(microwatts: Path) -> float:
    return _number(microwatts) / 1e6


def _volts_times_amperes(millivolts: Path, milliamperes: Path) -> float:
    return _number(millivolts) * _number(milliamperes) / 1e6


def _choose(devices: dict[str, list[_Rail]], rails: list[str] | None, root: Path) -> list[_Rail]:
    every = [rail for device in devices.values() for rail in device]
    if rails is not None:
        chosen = [rail for name in rails for rail in every if rail.name == name]
        missing = set(rails) - {rail.name for rail in chosen}
        if missing or not chosen:
            known = ", ".join(rail.name for rail in every) or "none"
            raise EnergyError(f"there is no sensor '{', '.join(sorted(missing))}' in {root}. Sensors: {known}.")
        return chosen
    for rail in every:
        if rail.name in TOTALS:
            rail_list = [rail]
            break
    else:
        rail_list = next(iter(devices.values()), [])
    if not rail_list:
        raise EnergyError(
            f"there is no power or energy sensor of a board in {root} (looked for {', '.join(DEVICES)}). Attach an "
            f"INA2xx and load its driver, name a sensor with rails=, or give the CSV of an external meter."
        )
    for rail in rail_list:  # what cannot be read must be known now, not in the middle of a window
        _ = rail.watts() if rail.watts else _number(rail.counter or root)
    return rail_list


def _label(folder: Path, kind: str, path: Path) -> str:
    index = path.name[len(kind) : -len("_input")]
    label = _text(folder / f"{kind}{index}_label")
    return label or f"{_text(folder / 'name') or folder.name}/{kind}{index}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise EnergyError(f"cannot read {path}: permission denied. Grant it with: sudo chmod a+r {path}") from error
    except OSError as error:
        raise EnergyError(f"cannot read {path}: {error.strerror}. Is the sensor powered?") from error
    except ValueError as error:
        raise EnergyError(f"{path} does not hold a number: {error}") from error
