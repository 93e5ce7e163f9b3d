"""Logs of external meters: units, spellings of CSV, energy between two times, logs that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_meters import log

from subbyte.errors import EnergyError
from subbyte.runtime.meter_csv import CsvMeter, energy_from_csv, read_csv


@pytest.mark.parametrize(
    ("header", "row", "volts"),
    [
        ("time_s,power_w", lambda t: (t, 0.25), None),
        ("Timestamp (ms),Power [mW]", lambda t: (1e3 * t, 250.0), None),
        ("Timestamp(ms),Current(uA)", lambda t: (1e3 * t, 50_000.0), 5.0),
        ("time_us,note_x,current_ma,voltage_mv", lambda t: (1e6 * t, 9.0, 50.0, 5000.0), None),
        ("\ufefftime,current,voltage", lambda t: (t, 0.05, 5.0), None),
        ("time_s,Current (\u00b5A)", lambda t: (t, 50_000.0), 5.0),
        ("time_\u03bcs,current_\u03bca", lambda t: (1e6 * t, 50_000.0), 5.0),
        ("time_s,POWER_UW,power_factor,Current (kA)", lambda t: (t, 250_000.0, 0.5, 7.0), None),
    ],
    ids=["plain", "units", "ppk2", "volts", "bom", "micro-sign", "greek-mu", "others"],
)
def test_csv_columns_and_units(
    tmp_path: Path, header: str, row: Callable[[float], tuple[float, ...]], volts: float | None
) -> None:
    path = log(tmp_path / "log.csv", header, [row(t / 100) for t in range(1001)])
    seconds, watts = read_csv(path, volts)
    np.testing.assert_allclose(seconds[[0, -1]], [0, 10], atol=1e-9)
    np.testing.assert_allclose(watts, 0.25)


@pytest.mark.parametrize("known", ["1000 W", "250 mW"])
@pytest.mark.parametrize("unit", ["kW", "MW", "dBm", "\u03bdW", "\u00b5", "m W", "mA", "J", "?"])
def test_a_unit_that_is_not_known_is_refused(tmp_path: Path, unit: str, known: str) -> None:
    """In brackets, as the last word, and in the row of units; never read as watts."""
    number, right = known.split()
    for header in (f"time_s,Power ({unit})", f"time_s,power_{unit}", f"time_s,power\ns,{unit}"):
        path = tmp_path / "log.csv"
        path.write_text(f"{header}\n0,{number}\n1,{number}\n", encoding="utf-8")
        with pytest.raises(EnergyError, match=r"log\.csv.*(unit '|expected a time)"):
            read_csv(path)
        path.write_text(f"{header.replace(unit, right)}\n0,{number}\n1,{number}\n", encoding="utf-8")
        np.testing.assert_allclose(read_csv(path)[1], 1000.0 if right == "W" else 0.25)


SPELLINGS = {
    "semicolons": "time_s;power_mw\n0;1250.5\n0.5;1250.5\n",
    "decimal commas": "time_s;power_mw\n0;1250,5\n0,5;1250,5\n",
    "tabs": "time_s\tnote\tpower_mw\n0\t\t1250,5\n0,5\t\t1250,5\n",
    "excel": "sep=;\r\nTime (ms);Power (mW);\r\n0;1250,5;\r\n500;1250,5;\r\n",
    "comments": "# a supply\n% of ours\n\ntime_s,power_w\n// running\n0,1.2505\n\n0.5,1.2505\n# end\n",
    "units": "time,power\nms,[mW]\n0,1250.5\n500,1250.5\n",
    "both units": "Time (ms),Power (mW)\n(ms),(mW)\n0,1250.5\n500,1250.5\n",
    "half a row": "time_s,power_w\n0,1.2505\n0.5,1.2505\n0.75,1.2",
    "half a number": "time_s,power_w\n0,1.2505\n0.5,1.2505\n1",
    "quoted": '"time_s","power_w"\n"0","1.2505"\n"5e-1","1.2505"\n',
    "old line ends": "time_s,power_w\r0,1.2505\r.5,+1.2505\r",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_csv(tmp_path: Path, spelling: str, encoding: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(SPELLINGS[spelling].encode(encoding))
    seconds, watts = read_csv(path)
    assert seconds.tolist() == [0.0, 0.5]
    np.testing.assert_allclose(watts, 1.2505)


def test_the_micro_sign_of_windows_and_a_torn_character(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("time_s,power_µw\n0,500000\n1,500000\n".encode("cp1252"))
    np.testing.assert_allclose(read_csv(path)[1], 0.5)
    path.write_bytes("time_s,power_µw,\u20ac\n0,500000,1\n1,500000,2\n2,500000,\u20ac".encode()[:-1])
    assert read_csv(path)[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time_s,power_w\n0,5,1,25\n1,5,1,25\n", "line 2 has 4 cells, the header 2"),
        ('time_s,power_w\n0,"1,234"\n1,"1,234"\n', "line 2, column 'power_w' holds '1,234'"),
        ("time_s;power_w\n0;1.234,5\n1;1.234,5\n", "line 2, column 'power_w' holds '1.234,5'"),
        ("time_s;power_w\n0.5;1,5\n1;1,5\n", "decimal commas and points in one file"),
        *((f"time_s,power_w\n0,1\n# x\n1,{v}\n2,1\n", f"line 4, .*'{v}'") for v in ("nan", "0x1p3", "1_0", "1e", "")),
        ("time_s,power_w\n0,\u0663\n1,1\n", "not a number"),
        ("time_s,power_w\n12:30:05,1\n12:30:06,1\n", "'12:30:05'"),
        ("time_s,power_w,power_mw\n0,1,1\n1,1,1\n", "'power_w' and 'power_mw' are both power"),
        ("time (ms),power (mW)\nms,W\n0,1\n1,1\n", r"'power \(mW\)' has the unit 'W' in the row below"),
        ("time_s,power_w\n0,1\n1,1e999\n", "not all finite"),
        ("time_s,current_ma,voltage_v\n0,1,5\n1,1e300,1e300\n", "not all finite"),  # each is finite, watts are not
    ],
)
def test_what_is_no_number_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(EnergyError, match=reason):
        read_csv(tmp_path / "log.csv")


@pytest.mark.parametrize("volts", [0.0, -5.0, float("nan"), float("inf")])
def test_a_supply_without_volts_is_refused(tmp_path: Path, volts: float) -> None:
    path = log(tmp_path / "log.csv", "time_s,current_a", [(0, 1), (1, 1)])
    with pytest.raises(EnergyError, match="expected volts above 0"):
        read_csv(path, volts)


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
        *("", "a,b\n1,2\n2,3", "time_s,current_a\n1,2\n2,3\n", "time_s,power_w"),
        *("time_s,power_w\n" + rows for rows in ("1,2", "1,2\n0,2", "1,x\n2,3\n", "1\n2\n", "1,nan\n2,3\n")),
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
