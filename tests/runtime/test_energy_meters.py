"""Energy counters on a fake sysfs tree: sums, wrap-around, closed files, missing sensors, windows too short."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_meters import domain, log, write
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import EnergyError, UnknownNameError
from subbyte.runtime import energy
from subbyte.runtime.energy import Energy, Reading, energy_of, measure
from subbyte.runtime.hwmon import Hwmon
from subbyte.runtime.meter_csv import CsvMeter, energy_from_csv, read_csv
from subbyte.runtime.rapl import Rapl
from subbyte.runtime.sampling import Sampler
from subbyte.runtime.zeus_meter import Zeus

# ---- RAPL ----


def test_rapl_adds_packages_and_dram_and_leaves_out_the_rest(tmp_path: Path) -> None:
    counters = [
        (domain(tmp_path, "intel-rapl:0", "package-0", 1_000), 5_000_000),
        (domain(tmp_path, "intel-rapl:0:0", "core", 0), 3_000_000),
        (domain(tmp_path, "intel-rapl:0:1", "uncore", 0), 100_000),
        (domain(tmp_path, "intel-rapl:0:2", "dram", 7), 500_000),
        (domain(tmp_path, "intel-rapl:1", "package-1", 50), 2_000_000),
        (domain(tmp_path, "intel-rapl:1:2", "dram", 9), 250_000),
        (domain(tmp_path, "intel-rapl:2", "psys", 0), 9_000_000),
        (domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0), 5_000_000),
        (domain(tmp_path, "intel-rapl-mmio:0:0", "dram", 0), 500_000),
    ]
    write(tmp_path / "intel-rapl", enabled=1)
    meter = Rapl(tmp_path)
    meter.start()
    for path, step in counters:
        path.write_text(str(int(path.read_text()) + step))
    reading = meter.stop()
    assert reading.domains == {"package-0": 5.0, "dram-0": 0.5, "package-1": 2.0, "dram-1": 0.25}
    assert reading.joules == 7.75
    assert meter.source == "RAPL package-0 + dram-0 + package-1 + dram-1 (powercap)"


@given(start=st.integers(0, 999_999), steps=st.lists(st.integers(0, 999_999), min_size=1, max_size=6))
def test_rapl_follows_every_wrap(tmp_path_factory: pytest.TempPathFactory, start: int, steps: list[int]) -> None:
    """A counter of range 1,000,000 that passes its end any number of times, read once between passes."""
    root = tmp_path_factory.mktemp("powercap")
    path = domain(root, "intel-rapl:0", "package-0", start, 1_000_000)
    meter = Rapl(root)
    meter.start()
    value = start
    for step in steps:
        value = (value + step) % 1_000_000
        path.write_text(str(value))
        meter._update()
    assert meter.stop().joules == pytest.approx(sum(steps) / 1e6)


def test_rapl_polls_by_itself_so_that_no_wrap_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subbyte.runtime.rapl.POLL_S", 0.002)
    path = domain(tmp_path, "intel-rapl:0", "package-0", 900, 1_000)
    meter = Rapl(tmp_path)
    meter.start()
    total = 0
    for _ in range(8):  # wraps several times
        total += 400
        temporary = path.with_name("next")
        temporary.write_text(str((900 + total) % 1_000))
        temporary.replace(path)
        patience = time.monotonic() + 600
        while meter._domains[0].last_uj != (900 + total) % 1_000 and time.monotonic() < patience:
            time.sleep(0.001)
    assert meter.stop().joules == pytest.approx(total / 1e6)


def test_rapl_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match=r"no RAPL counter .* modprobe"):
        Rapl(tmp_path / "none")
    domain(tmp_path, "intel-rapl:0", "psys", 0)
    with pytest.raises(EnergyError, match="no RAPL counter"):
        Rapl(tmp_path)


def test_rapl_that_holds_no_number(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 0).write_text("n/a")
    with pytest.raises(EnergyError, match="'n/a', expected a number"):
        Rapl(tmp_path)


def test_rapl_that_vanishes_while_measuring(tmp_path: Path) -> None:
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = Rapl(tmp_path)
    meter.start()
    path.unlink()
    with pytest.raises(EnergyError, match=r"cannot read .*energy_uj"):
        meter.stop()


def test_rapl_that_is_frozen(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = Rapl(tmp_path)
    meter.start()
    time.sleep(0.11)
    with pytest.raises(EnergyError, match="frozen"):
        meter.stop()


@contextmanager
def powerless() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("meter", [Rapl, Hwmon])
def test_a_closed_counter_says_how_to_grant_it(meter: type[Rapl | Hwmon]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        root.chmod(0o755)
        domain(root, "intel-rapl:0", "package-0", 0).chmod(0o200)
        (write(root / "hwmon0", name="ina238", power1_input=5) / "power1_input").chmod(0o200)
        with powerless(), pytest.raises(EnergyError, match=r"permission denied\. Grant it .*sudo chmod a\+r"):
            meter(root)


# ---- hwmon ----


def test_hwmon_power_is_added_up_over_time(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="nvme", power1_input=99_000_000)
    write(tmp_path / "hwmon1", name="ina226", power1_input=2_500_000, power2_input=500_000, power2_label="CPU")
    meter = Hwmon(tmp_path, period_s=0.001)
    meter.start()
    time.sleep(0.05)
    reading = meter.stop()
    assert meter.source == "hwmon ina226/power1 + CPU"
    assert reading.joules == pytest.approx(3.0 * reading.window_s)
    assert reading.domains["CPU"] == pytest.approx(0.5 * reading.window_s)
    assert reading.ticks >= 2
    assert reading.window_s >= 0.05


def test_hwmon_of_a_jetson_takes_the_total_rail(tmp_path: Path) -> None:
    """INA3221: millivolts and milliamperes of three rails, the first of which feeds the others."""
    rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1200}
    rails |= {"in2_label": "VDD_CPU_GPU_CV", "in2_input": 5000, "curr2_input": 400}
    rails |= {"in3_label": "VDD_SOC", "in3_input": 5000, "curr3_input": 300, "in7_input": 3}
    write(tmp_path / "hwmon4", name="ina3221", **rails)
    meter = Hwmon(tmp_path, period_s=0.001)
    assert meter.source == "hwmon VDD_IN"
    meter.start()
    time.sleep(0.03)
    reading = meter.stop()
    assert reading.joules == pytest.approx(6.0 * reading.window_s)
    chosen = Hwmon(tmp_path, rails=["VDD_SOC"], period_s=0.001)
    chosen.start()
    time.sleep(0.03)
    reading = chosen.stop()
    assert reading.joules == pytest.approx(1.5 * reading.window_s)


def test_hwmon_prefers_a_counter(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina228", energy1_input=1_000_000, power1_input=1, energy1_label="board")
    meter = Hwmon(tmp_path)
    meter.start()
    (folder / "energy1_input").write_text("3500000")
    reading = meter.stop()
    assert (reading.joules, reading.domains) == (2.5, {"board": 2.5})


def test_hwmon_samples_no_faster_than_the_sensor(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="ina226", power1_input=1_000_000, update_interval=20)
    meter = Hwmon(tmp_path, period_s=0.001)
    meter.start()
    time.sleep(0.1)
    reading = meter.stop()
    assert reading.ticks <= reading.window_s / 0.02 + 3


def test_hwmon_with_no_sensor_of_the_board(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="coretemp", temp1_input=40_000)
    write(tmp_path / "hwmon1", name="nvme", power1_input=1)
    with pytest.raises(EnergyError, match="no power or energy sensor of a board"):
        Hwmon(tmp_path)
    with pytest.raises(EnergyError, match=r"no sensor 'VDD'.*Sensors: nvme/power1"):
        Hwmon(tmp_path, rails=["VDD"])
    assert Hwmon(tmp_path, rails=["nvme/power1"]).source == "hwmon nvme/power1"


def test_hwmon_sensor_that_fails_while_measuring(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina226", power1_input=1_000_000)
    meter = Hwmon(tmp_path, period_s=0.002)
    meter.start()
    (folder / "power1_input").write_text("")
    time.sleep(0.05)
    with pytest.raises(EnergyError, match="does not hold a number"):
        meter.stop()


def test_hwmon_counter_that_was_reset(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina228", energy1_input=1_000_000)
    meter = Hwmon(tmp_path)
    meter.start()
    (folder / "energy1_input").write_text("10")
    with pytest.raises(EnergyError, match="went backwards"):
        meter.stop()


# ---- external meters ----


@pytest.mark.parametrize(
    ("header", "row", "volts"),
    [
        ("time_s,power_w", lambda t: (t, 0.25), None),
        ("Timestamp (ms),Power [mW]", lambda t: (1e3 * t, 250.0), None),
        ("Timestamp(ms),Current(uA)", lambda t: (1e3 * t, 50_000.0), 5.0),
        ("time_us,note_x,current_ma,voltage_mv", lambda t: (1e6 * t, 9.0, 50.0, 5000.0), None),
        ("\ufefftime,current,voltage", lambda t: (t, 0.05, 5.0), None),
    ],
    ids=["plain", "units", "ppk2", "volts", "bom"],
)
def test_csv_columns_and_units(
    tmp_path: Path, header: str, row: Callable[[float], tuple[float, ...]], volts: float | None
) -> None:
    path = log(tmp_path / "log.csv", header, [row(t / 100) for t in range(1001)])
    seconds, watts = read_csv(path, volts)
    np.testing.assert_allclose(seconds[[0, -1]], [0, 10], atol=1e-9)
    np.testing.assert_allclose(watts, 0.25)


def test_csv_energy_between_times(tmp_path: Path) -> None:
    """1 W idle, 3 W from 4 s to 8 s."""
    rows = [(t / 100, 3.0 if 400 <= t < 800 else 1.0) for t in range(1001)]
    path = log(tmp_path / "log.csv", "time_s,power_w", rows)
    found = energy_from_csv(path, window=(4.005, 7.985), idle=(0.5, 3.5), calls=10)
    assert found.joules_gross == pytest.approx(3.0 * 3.98)
    assert found.joules_net == pytest.approx(2.0 * 3.98)
    assert found.idle_w == pytest.approx(1.0)
    assert found.joules_per_call_net == pytest.approx(0.796)
    with pytest.raises(EnergyError, match=r"covers 0\.000 \.\. 10\.000 s, the window is 9"):
        energy_from_csv(path, window=(9.0, 11.0), idle=(0.5, 3.5))
    with pytest.raises(EnergyError, match="holds 49 updates"):
        energy_from_csv(path, window=(4.0, 4.5), idle=(0.5, 3.5))


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,b\n1,2\n2,3", "time_s,current_a\n1,2\n2,3", "time_s,power_w"),
        *("time_s,power_w\n" + rows for rows in ("1,2", "1,2\n0,2", "1,x\n2,3", "1\n2", "1,nan\n2,3")),
    ],
)
def test_csv_that_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(EnergyError, match=r"log\.csv"):
        read_csv(path)
    with pytest.raises(EnergyError, match="cannot read"):
        read_csv(tmp_path / "none.csv")


def test_csv_meter_waits_for_the_log(tmp_path: Path) -> None:
    path = log(tmp_path / "log.csv", "time_s,power_w", [(1000 + t / 100, 2.0) for t in range(2001)])
    now = [1002.0]
    meter = CsvMeter(path, clock=lambda: now[0])
    meter.start()
    now[0] = 1005.0
    reading = meter.stop()
    assert (reading.joules, reading.window_s) == (pytest.approx(6.0), 3.0)
    meter = CsvMeter(path, wait_s=0.0, clock=lambda: now[0])
    meter.start()
    now[0] = 1050.0
    with pytest.raises(EnergyError, match="log for longer"):
        meter.stop()


# ---- measuring ----


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
    with pytest.raises(EnergyError, match="no graphics card or board here"):
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
