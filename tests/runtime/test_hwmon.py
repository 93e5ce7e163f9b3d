"""Board sensors on a fake hwmon tree: which rails are a board's total, sums over time, sensors that fail."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from fake_meters import board, ina3221, powerless, write

from subbyte.errors import EnergyError
from subbyte.runtime.hwmon import Hwmon


def test_hwmon_power_is_added_up_over_time(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="nvme", power1_input=99_000_000)
    write(tmp_path / "hwmon1", name="ina226", power1_input=2_500_000, power2_input=500_000, power2_label="CPU")
    meter = Hwmon(tmp_path, rails=["ina226/power1", "CPU"], period_s=0.001)
    meter.start()
    time.sleep(0.05)
    reading = meter.stop()
    assert meter.source == "hwmon ina226/power1 + CPU"
    assert reading.joules == pytest.approx(3.0 * reading.window_s)
    assert reading.domains["CPU"] == pytest.approx(0.5 * reading.window_s)
    assert reading.ticks >= 2
    assert reading.window_s >= 0.05


ORIN = "nvidia,p3737-0000+p3701-0000 nvidia,p3701-0000 nvidia,tegra234"
ORIN_RAILS = {"VDD_GPU_SOC": (20_000, 200), "VDD_CPU_CV": (20_000, 500), "VIN_SYS_5V0": (5_000, 600)}


def watts(meter: Hwmon) -> float:
    meter.start()
    time.sleep(0.03)
    reading = meter.stop()
    assert reading.joules == pytest.approx(sum(reading.domains.values()))
    return reading.joules / reading.window_s


@pytest.mark.parametrize(
    ("compatible", "rails", "total", "said"),
    [
        (
            "nvidia,p3449-0000+p3448-0002 nvidia,tegra210",
            {"POM_5V_IN": (5000, 900), "POM_5V_GPU": (5000, 300), "POM_5V_CPU": (5000, 200)},
            4.5,
            "POM_5V_IN (the module of a Jetson Nano; left out: POM_5V_GPU, POM_5V_CPU)",
        ),
        (
            "nvidia,p2597-0000+p3310-1000 nvidia,tegra186",
            {"VDD_SYS_CPU": (19_000, 100), "VDD_IN": (19_000, 300)},
            5.7,
            "VDD_IN (the module of a Jetson TX2; left out: VDD_SYS_CPU)",
        ),
        (
            "nvidia,p3509-0000+p3668-0001 nvidia,tegra194",
            {"VDD_IN": (5000, 1200), "VDD_CPU_GPU_CV": (5000, 400), "VDD_SOC": (5000, 300)},
            6.0,
            "VDD_IN (the module of a Jetson Xavier NX; left out: VDD_CPU_GPU_CV, VDD_SOC)",
        ),
        (
            "nvidia,p3768-0000+p3767-0005 nvidia,tegra234",
            {"VDD_IN": (5000, 1400), "NC": (0, 0)},
            7.0,
            "VDD_IN (the module of a Jetson Orin Nano or Orin NX)",
        ),
        (
            ORIN,
            ORIN_RAILS,
            17.0,
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (the module of a Jetson AGX Orin; left out: VDDQ_VDD2_1V8AO)",
        ),
    ],
)
def test_the_total_of_a_board_is_what_its_documents_add_up(
    tmp_path: Path, compatible: str, rails: dict[str, tuple[int, int]], total: float, said: str
) -> None:
    """Millivolts and milliamperes of each channel; the second INA3221 of an AGX Orin has a rail inside of another."""
    ina3221(tmp_path / "hwmon3", **rails)
    if compatible == ORIN:
        ina3221(tmp_path / "hwmon4", NC=(0, 0), VDDQ_VDD2_1V8AO=(5_000, 100))
    meter = Hwmon(tmp_path, period_s=0.001, device_tree=board(tmp_path / "tree", compatible))
    assert meter.source == f"hwmon {said}"
    assert watts(meter) == pytest.approx(total)


@pytest.mark.parametrize(
    ("compatible", "rails", "reason"),
    [
        (None, ORIN_RAILS, "the total of this machine is not known"),
        ("vendor,board", {"VDD_IN": (5000, 1)}, r"the total of this board \('Some Board'\) is not known"),
        ("nvidia,p2972-0000+p2888-0001", {"GPU": (1, 1), "SYS5V": (1, 1)}, "is not known here"),
        (ORIN, {"VDD_GPU_SOC": (1, 1), "VIN_SYS_5V0": (1, 1)}, "the total of Jetson AGX Orin is VDD_GPU_SOC"),
        ("nvidia,p3701-0000 nvidia,p3767-0000", ORIN_RAILS, "is not known here"),  # two boards are none
    ],
)
def test_no_rail_is_taken_for_a_total_without_a_rule(
    tmp_path: Path, compatible: str | None, rails: dict[str, tuple[int, int]], reason: str
) -> None:
    ina3221(tmp_path / "hwmon0", **rails)
    tree = board(tmp_path / "tree", compatible) if compatible else tmp_path / "none"
    with pytest.raises(EnergyError, match=rf"{reason}.*Sensors in .*{next(iter(rails))} \(hwmon0/in1\).*hwmon:RAIL"):
        Hwmon(tmp_path, device_tree=tree)
    named = Hwmon(tmp_path, rails=list(rails), period_s=0.001)
    assert named.source == f"hwmon {' + '.join(rails)}"
    assert watts(named) == pytest.approx(sum(volts * amperes for volts, amperes in rails.values()) / 1e6)


def test_hwmon_names_one_rail_each(tmp_path: Path) -> None:
    """Two devices with a rail of one name, and one rail by two names."""
    for index, power in enumerate((1_000_000, 2_000_000)):
        write(tmp_path / f"hwmon{index}", name="ina226", power1_input=power, power1_label="VDD")
    with pytest.raises(EnergyError, match="2 sensors are called 'VDD': take hwmon0/power1 or hwmon1/power1"):
        Hwmon(tmp_path, rails=["VDD"])
    with pytest.raises(EnergyError, match="'hwmon0/power1' is named twice"):
        Hwmon(tmp_path, rails=["hwmon0/power1", "hwmon0/power1"])
    with pytest.raises(EnergyError, match="no sensor is named"):
        Hwmon(tmp_path, rails=[])
    both = Hwmon(tmp_path, rails=["hwmon0/power1", "hwmon1/power1"], period_s=0.001)
    assert watts(both) == pytest.approx(3.0)


def test_volts_and_amperes_of_one_number_are_a_rail_of_the_ina3221_alone(tmp_path: Path) -> None:
    """A regulator's in1 is its input, curr1 its output; inputs 4 to 7 of the INA3221 are shunts."""
    write(tmp_path / "hwmon0", name="max20730", in1_input=12_000, curr1_input=5_000)
    ina3221(tmp_path / "hwmon1", VDD_IN=(5000, 100))
    with pytest.raises(EnergyError, match=r"Sensors in .*: VDD_IN \(hwmon1/in1\)\.$"):
        Hwmon(tmp_path, rails=["max20730/in1"])


def test_hwmon_prefers_a_counter(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina228", energy1_input=1_000_000, power1_input=1, energy1_label="board")
    with pytest.raises(EnergyError, match="no sensor 'ina228/power1'"):
        Hwmon(tmp_path, rails=["ina228/power1"])  # the same rail, sampled
    meter = Hwmon(tmp_path, rails=["board"])
    meter.start()
    (folder / "energy1_input").write_text("3500000")
    reading = meter.stop()
    assert (reading.joules, reading.domains) == (2.5, {"board": 2.5})


def test_hwmon_samples_no_faster_than_the_sensor(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="ina226", power1_input=1_000_000, update_interval=20)
    meter = Hwmon(tmp_path, rails=["ina226/power1"], period_s=0.001)
    meter.start()
    time.sleep(0.1)
    reading = meter.stop()
    assert reading.ticks <= reading.window_s / 0.02 + 3


def test_hwmon_without_a_sensor(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="coretemp", temp1_input=40_000)
    with pytest.raises(EnergyError, match="no power or energy sensor in"):
        Hwmon(tmp_path)
    write(tmp_path / "hwmon1", name="nvme", power1_input=1)
    with pytest.raises(EnergyError, match=r"no sensor 'VDD'.*nvme/power1 \(hwmon1/power1\)"):
        Hwmon(tmp_path, rails=["VDD"])
    assert Hwmon(tmp_path, rails=["nvme/power1"]).source == "hwmon nvme/power1"


@pytest.mark.parametrize("file", ["power1_input", "update_interval"])
@pytest.mark.parametrize("text", ["", "n/a", "1e6", "0x5", "1_0", "2.5", "nan"])
def test_hwmon_takes_nothing_but_a_number(tmp_path: Path, file: str, text: str) -> None:
    (write(tmp_path / "hwmon0", name="ina226", power1_input=1, update_interval=1) / file).write_text(text)
    with pytest.raises(EnergyError, match=rf"{file} holds '{text}', expected a number of m"):
        Hwmon(tmp_path, rails=["ina226/power1"])


def test_a_closed_sensor_says_how_to_grant_it() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        root.chmod(0o755)
        (write(root / "hwmon0", name="ina238", power1_input=5) / "power1_input").chmod(0o200)
        with powerless(), pytest.raises(EnergyError, match=r"permission denied\. Grant it .*sudo chmod a\+r"):
            Hwmon(root, rails=["ina238/power1"])


def test_hwmon_sensor_that_fails_while_measuring(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina226", power1_input=1_000_000)
    meter = Hwmon(tmp_path, rails=["ina226/power1"], period_s=0.002)
    meter.start()
    (folder / "power1_input").write_text("")
    time.sleep(0.05)
    with pytest.raises(EnergyError, match="holds '', expected a number of microwatts"):
        meter.stop()


def test_hwmon_counter_that_was_reset(tmp_path: Path) -> None:
    folder = write(tmp_path / "hwmon0", name="ina228", energy1_input=1_000_000)
    meter = Hwmon(tmp_path, rails=["ina228/energy1"])
    meter.start()
    (folder / "energy1_input").write_text("10")
    with pytest.raises(EnergyError, match="went backwards"):
        meter.stop()
