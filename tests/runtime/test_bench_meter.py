"""`bench --meter`: the meter that was asked for is the one in the report, and one that cannot work is refused first."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_meters import board, domain, ina3221, log, write

from subbyte.cli import main
from subbyte.errors import EnergyError
from subbyte.runtime import bench
from subbyte.runtime.energy import make_meter
from subbyte.runtime.hwmon import Hwmon
from subbyte.runtime.rapl import Rapl
from subbyte.runtime.zeus_meter import Zeus

WATTS = 20


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where RAPL, hwmon and zeus look, in place of /sys and /dev: empty."""
    monkeypatch.setattr(Rapl.__init__, "__defaults__", (tmp_path / "powercap",))
    monkeypatch.setattr(Hwmon.__init__, "__defaults__", (tmp_path / "hwmon", None, 0.005, tmp_path / "device-tree"))
    monkeypatch.setattr(Zeus.__init__, "__defaults__", ((str(tmp_path / "none"),),))
    return tmp_path


@contextmanager
def drawing(watts: int, counter: Path) -> Iterator[None]:
    """Keep a counter of microjoules moving as a device of that power would."""
    stop, started = threading.Event(), time.perf_counter()

    def move() -> None:
        while not stop.wait(0.001):
            temporary = counter.with_name("next")
            temporary.write_text(str(int(watts * 1e6 * (time.perf_counter() - started))))
            temporary.replace(counter)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run(bundle: Path, *options: str, seconds: float = 0.2) -> Result:
    return CliRunner().invoke(main, ["bench", str(bundle), "--seconds", str(seconds), *options])


def measured(bundle: Path, meter: str, seconds: float = 0.2) -> dict[str, Any]:
    saved = bundle.with_name("b.json")
    result = run(bundle, "--meter", meter, "--json", str(saved), seconds=seconds)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(saved.read_text())
    return found


def test_rapl_by_name_and_by_itself(sysfs: Path, bundle_path: Path) -> None:
    counter = domain(sysfs / "powercap", "intel-rapl:0", "package-0", 0)
    with drawing(WATTS, counter):
        write(sysfs / "hwmon" / "hwmon0", name="ina228", energy1_input=1)
        for name in ("rapl", "auto"):
            found = measured(bundle_path, name)["energy_measured"]
            assert found["source"] == "RAPL package-0 (powercap)"
            assert found["provenance"] == "measured"
            # The thread that moves the counter may wait for a core: what it never showed cannot be in a window.
            assert 0 < found["joules_gross"] <= int(counter.read_text()) / 1e6
            idle = found["idle_w"] * found["window_s"]
            assert found["joules_net"] == pytest.approx(found["joules_gross"] - idle)
        assert measured(bundle_path, "none")["energy_measured"] is None


def test_hwmon_by_name_where_rapl_is_there_too(sysfs: Path, bundle_path: Path) -> None:
    domain(sysfs / "powercap", "intel-rapl:0", "package-0", 0)
    write(sysfs / "hwmon" / "hwmon0", name="ina228", energy1_input=1, energy1_label="board", energy2_input=1)
    found = measured(bundle_path, "hwmon:ina228/energy2+board")["energy_measured"]
    assert found["source"] == "hwmon ina228/energy2 + board"
    assert list(found["domains"]) == ["ina228/energy2", "board"]
    refused = run(bundle_path, "--meter", "hwmon")
    assert refused.exit_code == 1
    assert "Sensors in" in refused.output
    assert "--meter hwmon:RAIL+RAIL" in refused.output


def test_the_log_of_an_external_meter(sysfs: Path, bundle_path: Path) -> None:
    """A log of 1,000 rows a second that already reaches three minutes ahead."""
    now = time.time()
    path = log(sysfs / "supply.csv", "time_s,power_w", [(now + t / 1000, 0.25) for t in range(-1000, 180_000)])
    found = measured(bundle_path, f"csv:{path}")["energy_measured"]
    assert found["source"] == "external meter, supply.csv"
    assert found["joules_gross"] == pytest.approx(0.25 * found["window_s"])
    assert found["joules_net"] == pytest.approx(0.0, abs=1e-9)


def test_a_log_that_ends_too_early_leaves_the_latency_and_the_reason(sysfs: Path, bundle_path: Path) -> None:
    path = log(sysfs / "supply.csv", "time_s,power_w", [(t / 1000, 0.25) for t in range(1000)])
    saved = measured(bundle_path, f"csv:{path}")
    assert saved["energy_measured"] is None
    assert "log for longer" in saved["energy_measured_missing"]
    assert saved["latency_ms"]["p50"] > 0


def test_without_any_counter_auto_says_why_and_a_name_is_refused(sysfs: Path, bundle_path: Path) -> None:
    assert "no RAPL counter" in measured(bundle_path, "auto")["energy_measured_missing"]
    for name, reason in (("rapl", "modprobe"), ("hwmon", "no power or energy sensor"), ("zeus", "no graphics card")):
        result = run(bundle_path, "--meter", name, "--json", str(sysfs / "refused.json"))
        assert result.exit_code == 1, result.output
        assert result.output.startswith(f"error: energy meter '{name}' does not work here: ")
        assert reason in result.output
        assert "No other is readable here. Take 'csv:PATH'" in result.output
        assert "Traceback" not in result.output
        assert not (sysfs / "refused.json").exists()


def test_a_refused_meter_names_one_that_works(sysfs: Path) -> None:
    ina3221(sysfs / "hwmon" / "hwmon0", VDD_IN=(5000, 100))
    board(sysfs / "device-tree", "nvidia,p3768-0000+p3767-0003 nvidia,tegra234")
    with pytest.raises(EnergyError, match=r"Readable here: hwmon\."):
        make_meter("rapl")
    auto = make_meter("auto")
    assert auto is not None
    assert auto.source.startswith("hwmon")
    assert make_meter("none") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rappl", "Did you mean 'rapl'?"),
        ("cvs:log.csv", "unknown energy meter 'cvs'. Did you mean 'csv'?"),
        ("nnoe", "Did you mean 'none'?"),
        ("hwmon:", "unknown energy meter 'hwmon:'. Did you mean 'hwmon'?"),
        ("rapl:0", "unknown energy meter 'rapl:0'. Did you mean 'rapl'?"),
        ("csv", "Expected csv:PATH"),
        ("csv:none.csv", "there is no file 'none.csv'"),
        ("", "Known: auto, csv, hwmon, none, rapl, zeus."),
    ],
)
def test_a_name_that_cannot_be_is_a_usage_error(sysfs: Path, bundle_path: Path, name: str, words: str) -> None:
    result = run(bundle_path, "--meter", name)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "p99" not in result.output  # before anything is measured


def test_a_file_that_is_no_log_is_refused_first(sysfs: Path, bundle_path: Path) -> None:
    path = sysfs / "notes.csv"
    path.write_text("a,b\n1,2\n")
    result = run(bundle_path, "--meter", f"csv:{path}")
    assert result.exit_code == 1
    assert "expected a time (time_s) and a power" in result.output


def test_energy_that_is_not_asked_for_is_not_measured(sysfs: Path, bundle_path: Path) -> None:
    found = bench(bundle_path, iterations=5, cold=False, meter="none")
    assert (found.energy_measured, found.energy_measured_missing) == (None, "not asked for")
