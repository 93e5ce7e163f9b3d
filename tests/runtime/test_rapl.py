"""RAPL on a fake powercap tree: sums, wrap-around, mirrors, closed and masked files, numbers that are none."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from fake_meters import domain, powerless, write
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import EnergyError
from subbyte.runtime.rapl import Rapl


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


@pytest.mark.parametrize("text", ["", "1_000", "0x10", "1e3", "nan", "+5", "\u0663", "5 6", "-3", "12.5", "101"])
@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_rapl_takes_nothing_but_a_counter_within_its_range(tmp_path: Path, text: str, file: str) -> None:
    """What int() would take, and 101 of a range of 100 (a range of 101 is one)."""
    path = domain(tmp_path, "intel-rapl:0", "package-0", 0, 100)
    (path.parent / file).write_text(text, encoding="utf-8")
    if (text, file) == ("101", "max_energy_range_uj"):
        Rapl(tmp_path)
    else:
        with pytest.raises(EnergyError, match=rf"{file} holds .*expected|energy_uj holds 0, expected 0 \.\. -3"):
            Rapl(tmp_path)


def test_rapl_counts_dies_that_mirror_one_counter_once(tmp_path: Path) -> None:
    """Two dies of a package show its one counter; the dies of the other package have their own."""
    for zone, name, uj in (
        ("intel-rapl:0", "package-0-die-0", 70_000),
        ("intel-rapl:0:0", "dram", 900),
        ("intel-rapl:1", "package-0-die-1", 70_000),
        ("intel-rapl:1:0", "dram", 900),
        ("intel-rapl:2", "package-1-die-0", 70_000),
        ("intel-rapl:3", "package-1-die-1", 50_000),
    ):
        domain(tmp_path, zone, name, uj)
    meter = Rapl(tmp_path)
    assert meter.source == (
        "RAPL package-0-die-0 + dram-0-die-0 + package-1-die-0 + package-1-die-1 "
        "(powercap; left out: package-0-die-1, dram-0-die-1, the same counter)"
    )
    meter.start()
    for zone, uj in (("0", 1_070_000), ("1", 1_070_000), ("2", 2_070_000), ("3", 4_050_000)):
        (tmp_path / f"intel-rapl:{zone}" / "energy_uj").write_text(str(uj))
    assert meter.stop().joules == 7.0


def test_rapl_that_a_container_masks(tmp_path: Path) -> None:
    """/sys/class/powercap holds links, what they point at is covered by an empty folder."""
    shown, hidden = tmp_path / "class", tmp_path / "devices"
    domain(hidden, "intel-rapl:0", "package-0", 0)
    shown.mkdir()
    (shown / "intel-rapl:0").symlink_to(hidden / "intel-rapl:0")
    assert Rapl(shown).source == "RAPL package-0 (powercap)"
    shutil.rmtree(hidden)
    with pytest.raises(EnergyError, match=r"intel-rapl:0 points nowhere\. .*masked.*systempaths=unconfined"):
        Rapl(shown)


@pytest.mark.parametrize("file", ["name", "energy_uj", "max_energy_range_uj"])
def test_a_closed_file_says_how_to_grant_that_file(file: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        root.chmod(0o755)
        (domain(root, "intel-rapl:0", "package-0", 0).parent / file).chmod(0o200)
        with powerless(), pytest.raises(EnergyError, match=rf"sudo chmod a\+r {root}/intel-rapl\*/{file}\b") as caught:
            Rapl(root)
        assert ("CVE-2020-8694" in str(caught.value)) == (file == "energy_uj")


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
