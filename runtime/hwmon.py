"""Board sensors in Linux hwmon: energy counters, power sensors, or volts times amperes (INA3221 on Jetson boards).

Energy counters (`energy<i>_input`, microjoules) are read at both ends; power (`power<i>_input`, microwatts, or for the
INA3221 `in<i>_input` millivolts x `curr<i>_input` milliamperes) is sampled and added up by the trapezoid rule.
What adds up to a board's total is in board_rails.py; on another board the rails are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from subbyte.errors import EnergyError
from subbyte.runtime.board_rails import DEVICE_TREE, board_name, find_board
from subbyte.runtime.energy import Reading
from subbyte.runtime.periodic_thread import Sampler
from subbyte.runtime.sysfs import read_integer, text_of

HWMON = Path("/sys/class/hwmon")
PERIOD_S = 0.005
COUNTER_TICK_S = 0.001
# Which voltage belongs to which current is each driver's own matter. In that of the INA3221 those of channels 1 to 3
# are a rail's, and further inputs are shunts and sums (Linux, Documentation/hwmon/ina3221.rst).
INA3221_CHANNELS = ("1", "2", "3")
UNCONNECTED = "NC"  # the label of a channel that is not wired


@dataclass
class _Rail:
    label: str
    names: tuple[str, ...]  # by which it can be asked for
    device: str
    watts: Callable[[], float] | None  # None: a counter
    counter: Path | None = None
    period_s: float = 0.0  # in which the sensor has a new value
    first_j: float = 0.0
    joules: float = 0.0
    last: tuple[float, float] | None = field(default=None)  # time, watts


class Hwmon:
    """Joules of the rails that add up to the board's total, or of `rails`: label, device/channel or hwmon<i>/channel.

    Raises EnergyError where the board is not known and no rail is named, and for a sensor that cannot be read.
    """

    def __init__(
        self,
        root: Path = HWMON,
        rails: Iterable[str] | None = None,
        period_s: float = PERIOD_S,
        device_tree: Path = DEVICE_TREE,
    ) -> None:
        every = _find(root)
        names = None if rails is None else list(rails)
        chosen, self.source = _total(every, root, device_tree) if names is None else _named(every, names, root)
        for rail in chosen.values():  # what cannot be read must be known now, not in the middle of a window
            _ = rail.watts() if rail.watts else _counter_j(rail)
        self._names, self._rails = list(chosen), list(chosen.values())
        self._sampler = Sampler(self._sample, max(period_s, *(rail.period_s for rail in self._rails)))
        self._samples = 0
        self._first = self._last = 0.0

    def start(self) -> None:
        self._samples = 0
        for rail in self._rails:
            rail.joules, rail.last = 0.0, None
            if rail.counter is not None:
                rail.first_j = _counter_j(rail)
        self._first = 0.0
        self._sampler.start()

    def stop(self) -> Reading:
        self._sampler.stop()
        window = self._last - self._first
        for rail in self._rails:
            if rail.counter is not None:
                rail.joules = _counter_j(rail) - rail.first_j
                if rail.joules < 0:
                    raise EnergyError(f"counter {rail.counter} went backwards: it was reset. Measure again.")
        ticks = self._samples if any(rail.watts for rail in self._rails) else int(window / COUNTER_TICK_S)
        domains = {name: rail.joules for name, rail in zip(self._names, self._rails, strict=True)}
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


# ---- which rails ----


def _total(every: list[_Rail], root: Path, device_tree: Path) -> tuple[dict[str, _Rail], str]:
    """The rails of this board's total by label, and what is said of them."""
    board = find_board(device_tree)
    other = "or give the CSV of an external meter."
    if not every:
        raise EnergyError(
            f"there is no power or energy sensor in {root}. Attach an INA2xx and load its driver, {other}"
        )
    listed = _listed(every, root)
    how = f"{listed} Name those that add up to what you mean (--meter hwmon:RAIL+RAIL, or rails=), {other}"
    if board is None:
        where = f"this board ('{known}')" if (known := board_name(device_tree)) else "this machine"
        raise EnergyError(f"which rails add up to the total of {where} is not known here. {how}")
    sensors = [rail for rail in every if rail.device == board.device and rail.label != UNCONNECTED]
    rails = [rail for label in board.total for rail in sensors if rail.label == label]
    if [rail.label for rail in rails] != list(board.total):
        raise EnergyError(f"the total of {board.name} is {' + '.join(board.total)}, each of them once. {how}")
    left_out = [rail.label for rail in sensors if rail.label not in board.total]
    rest = f"; left out: {', '.join(left_out)}" if left_out else ""
    source = f"hwmon {' + '.join(board.total)} ({board.covers} of a {board.name}{rest})"
    return dict(zip(board.total, rails, strict=True)), source


def _named(every: list[_Rail], names: list[str], root: Path) -> tuple[dict[str, _Rail], str]:
    """The rails of those names, by name, and what is said of them."""
    chosen: dict[str, _Rail] = {}
    for name in names:
        found = [rail for rail in every if name in rail.names]
        if not found:
            raise EnergyError(f"there is no sensor '{name}' in {root}. {_listed(every, root)}")
        if len(found) > 1:
            raise EnergyError(
                f"{len(found)} sensors are called '{name}': take {' or '.join(r.names[-1] for r in found)}."
            )
        if any(rail is found[0] for rail in chosen.values()):
            raise EnergyError(f"sensor '{name}' is named twice: it would be counted twice.")
        chosen[name] = found[0]
    if not chosen:
        raise EnergyError(f"no sensor is named. {_listed(every, root)}")
    return chosen, f"hwmon {' + '.join(chosen)}"


def _listed(every: list[_Rail], root: Path) -> str:
    rails = ", ".join(f"{rail.label} ({rail.names[-1]})" for rail in every) or "none"
    return f"Sensors in {root}: {rails}."


# ---- what is there ----


def _find(root: Path) -> list[_Rail]:
    """Every rail of every device."""
    rails = []
    for folder in sorted(root.glob("hwmon*")):
        device = text_of(folder / "name") or folder.name
        found = [
            *(_rail(folder, device, path, None) for path in sorted(folder.glob("energy[0-9]*_input"))),
            *(_rail(folder, device, path, partial(_watts, path)) for path in sorted(folder.glob("power[0-9]*_input"))),
        ]
        if any(rail.counter for rail in found):
            found = [rail for rail in found if rail.counter]  # the counters are of the same rails
        if device == "ina3221":
            found += _products(folder, device)
        rails += found
    return rails


def _products(folder: Path, device: str) -> list[_Rail]:
    """Volts times amperes of an INA3221's channels."""
    return [
        _rail(folder, device, volts, partial(_volts_times_amperes, volts, current))
        for channel in INA3221_CHANNELS
        if (volts := folder / f"in{channel}_input").exists() and (current := folder / f"curr{channel}_input").exists()
    ]


def _rail(folder: Path, device: str, path: Path, watts: Callable[[], float] | None) -> _Rail:
    channel = path.name.removesuffix("_input")
    label = text_of(folder / f"{channel}_label")
    interval = folder / "update_interval"
    return _Rail(
        label or f"{device}/{channel}",
        (*((label,) if label else ()), f"{device}/{channel}", f"{folder.name}/{channel}"),
        device,
        watts,
        path if watts is None else None,
        _number(interval, "milliseconds") / 1000 if interval.exists() else 0.0,
    )


def _watts(microwatts: Path) -> float:
    return _number(microwatts, "microwatts") / 1e6


def _volts_times_amperes(millivolts: Path, milliamperes: Path) -> float:
    return _number(millivolts, "millivolts") * _number(milliamperes, "milliamperes") / 1e6


def _counter_j(rail: _Rail) -> float:
    assert rail.counter is not None
    return _number(rail.counter, "microjoules") / 1e6


def _number(path: Path, unit: str) -> int:
    return read_integer(path, unit, f"Grant it with: sudo chmod a+r {path}")
