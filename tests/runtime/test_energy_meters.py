"""Measuring energy: gross and net of idle, windows too short, meters that are not here."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fake_meters import domain

from subbyte.errors import EnergyError, UnknownNameError
from subbyte.runtime import energy
from subbyte.runtime.energy import Energy, Reading, energy_of, measure
from subbyte.runtime.periodic_thread import Sampler
from subbyte.runtime.rapl import Rapl
from subbyte.runtime.zeus_meter import Zeus


class Steady:
    """A meter of a device that draws `watts`, on a real clock; its windows hold `ticks`, the last ever after."""

    source = "steady"

    def __init__(self, watts: float, *ticks: int) -> None:
        self.watts = watts
        self._ticks = list(ticks or (1000,))
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> Reading:
        window = time.perf_counter() - self._start
        ticks = self._ticks.pop(0) if len(self._ticks) > 1 else self._ticks[0]
        return Reading(self.watts * window, window, ticks, {"all": self.watts * window})


def test_measure_is_gross_and_net_of_idle() -> None:
    meter = Steady(2.0)

    def work() -> None:
        meter.watts = 5.0
        time.sleep(0.01)

    found = measure(work, 0.02, meter=meter, idle_seconds=0.01)
    assert found.provenance == "measured"
    assert found.idle_w == pytest.approx(2.0)
    assert found.joules_gross == pytest.approx(5.0 * found.window_s)
    assert found.joules_net == pytest.approx(3.0 * found.window_s)
    assert found.calls >= 1
    assert found.joules_per_call_gross * found.calls == pytest.approx(found.joules_gross)
    assert found.to_json()["source"] == "steady"


def test_windows_under_a_hundred_ticks_are_refused() -> None:
    with pytest.raises(EnergyError, match=r"idle window of .* holds 99 .* at least 100 .* measure for about"):
        measure(lambda: None, 0.01, meter=Steady(1.0, 99))
    with pytest.raises(EnergyError, match=r"the window of .* holds 99 .* at least 100 "):
        measure(lambda: None, 0.01, meter=Steady(1.0, 100, 99))
    assert measure(lambda: None, 0.01, meter=Steady(1.0, 100)).ticks == 100


def test_a_failing_call_stops_the_meter() -> None:
    meter = Steady(1.0)
    stopped = []
    stop = meter.stop
    meter.stop = lambda: stopped.append(1) or stop()  # type: ignore[method-assign, func-returns-value]
    calls = []

    def work() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure(work, 600.0, meter=meter, idle_seconds=0.01)
    assert len(stopped) == 2


def test_measure_with_rapl_on_a_fake_tree(tmp_path: Path) -> None:
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    total = [0]

    def work() -> None:
        total[0] += 1000
        temporary = path.with_name("next")
        temporary.write_text(str(total[0]))
        temporary.replace(path)
        time.sleep(0.001)

    meter = Rapl(tmp_path)
    with pytest.raises(EnergyError, match="frozen"):
        measure(work, 0.12, meter=meter)  # nothing moves while idle
    reading = Reading(1.0, 2.0, 2000, {"package-0": 1.0})
    found = energy_of(reading, Reading(0.5, 2.0, 2000, {}), 10, meter.source)
    assert (found.joules_net, found.idle_w) == (0.5, 0.25)


def test_meters_that_are_not_here_say_why() -> None:
    found = energy.available()
    assert list(found) == list(energy.METERS)
    assert all(reason is None or len(reason) > 40 for reason in found.values())
    with pytest.raises(UnknownNameError, match="Did you mean 'rapl'"):
        energy.make_meter("rappl")


def test_find_meter_gives_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subbyte.runtime.energy.METERS", {"zeus": ("subbyte.runtime.zeus_meter", "Zeus")})
    monkeypatch.setattr(Zeus.__init__, "__defaults__", (("/none",),))
    with pytest.raises(EnergyError, match="zeus: there is no graphics card"):
        energy.find_meter(["zeus"])


def test_zeus_degrades_cleanly(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match="no graphics card here"):
        Zeus(devices=(str(tmp_path / "none"),))


def test_sampler_hands_on_what_goes_wrong() -> None:
    times: list[float] = []
    gone = threading.Event()

    def sample(now: float) -> None:
        times.append(now)
        if len(times) == 3:
            gone.set()
            raise EnergyError("the sensor is gone")

    sampler = Sampler(sample, 0.001)
    sampler.start()
    assert gone.wait(600)
    with pytest.raises(EnergyError, match="the sensor is gone"):
        sampler.stop()
    sampler.stop()
    assert len(times) == 3


def test_measured_energy_names_its_provenance() -> None:
    found = Energy(2.0, 1.0, 1.0, 1.0, 1.0, 4, 1000, {"all": 2.0}, "test")
    assert found.to_json()["provenance"] == "measured"
    assert (found.joules_per_call_gross, found.joules_per_call_net) == (0.5, 0.25)
