"""What the C core and the bench program say of machine, energy and cgroups is what Python says of the same trees."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import subbyte.runtime
from subbyte.errors import EnergyError
from subbyte.runtime.energy import Energy
from subbyte.runtime.features import FEATURES
from subbyte.runtime.machine import disturbances, machine
from subbyte.runtime.rapl import Rapl
from subbyte.tvm_kernels.emit.core import MEASURE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "runtime"))
from cgroup_trees import GROUP, V2, planted, stat  # noqa: E402, F401
from cgroup_trees import TREES as CGROUPS  # noqa: E402
from fake_meters import powerless  # noqa: E402

CORE = Path(subbyte.runtime.__file__).parent / "c"
PARTS = (*MEASURE, "bench_open.c", "bench_machine.c", "bench_energy.c", "run.c", "failure.c", "needs.c")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{CORE}"]
CPU = "sys/devices/system/cpu"

X86 = """processor : 0
model name : Test CPU @ 3.00GHz
cpu MHz : 2995.2
flags : fpu sse4_1 abm bmi1 avx2 avx512_vnni avx_vnni hypervisor avx2

processor : 1
flags : fpu
"""
BIG_LITTLE = """processor : 0
Features : fp asimd aes crc32 atomics asimddp i8mm
CPU part : 0xd4d

processor : 1
Features : fp asimd aes crc32
CPU part : 0xd05
"""
LAPTOP = {
    "proc/cpuinfo": X86,
    "proc/loadavg": "3.25 1.0 0.5 2/300 1234\n",
    "proc/meminfo": "MemTotal:        2048 kB\nMemAvailable:    1024 kB\nHugePages: 0\n",
    "proc/sys/kernel/osrelease": "6.1.0-test\n",
    "etc/os-release": 'NAME="X"\nPRETTY_NAME="Test Linux 1 \xe9"\n',
    f"{CPU}/cpu0/topology/thread_siblings_list": "0,2\n",
    f"{CPU}/cpu1/topology/thread_siblings_list": "1,3\n",
    f"{CPU}/cpu2/topology/thread_siblings_list": "0,2\n",
    f"{CPU}/cpu3/topology/thread_siblings_list": "1,3\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1800123\n",
    f"{CPU}/cpu0/cpufreq/cpuinfo_min_freq": "400000\n",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3600000\n",
    f"{CPU}/intel_pstate/no_turbo": "1\n",
    "sys/class/thermal/thermal_zone0/temp": "40000\n",
    "sys/class/thermal/thermal_zone1/temp": "91500\n",
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "sys/fs/cgroup/cpu.max": "100000 100000\n",
}
ALIASES = [alias for row in FEATURES.values() for alias in sorted(row.aliases)]
TREES = {
    "laptop": LAPTOP,
    "big-little": {"proc/cpuinfo": BIG_LITTLE, "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"},
    "risc-v": {"proc/cpuinfo": "processor : 0\nisa : rv64imafdcv_zicsr_zba_zbb\nuarch : sifive,u74\n"},
    "aliases": {"proc/cpuinfo": f"flags : {' '.join(ALIASES)} +x_y-z.1 SSE\nmodel name :\nHardware : Board\n"},
    "quiet": {"proc/loadavg": "0.01 0 0", f"{CPU}/cpufreq/boost": "1", "sys/hypervisor/type": "xen"},
    "odd": {
        "proc/meminfo": "MemTotal: many kB\n",
        "proc/loadavg": "busy",
        "etc/os-release": "PRETTY_NAME=\n",
        f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "0",
    },
    "no numbers": {
        "proc/cpuinfo": "cpu MHz : nan\n",
        "proc/meminfo": "MemTotal: 0x10 kB\nMemAvailable: 1_0 kB\n",
        "proc/loadavg": "inf 1 1",
        f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1e6",
        f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "36 00000",
        "sys/class/thermal/thermal_zone0/temp": "-12500",
    },
    "empty": {},
}


def program_of_parts(folder: Path) -> Path:
    """bench_parts, under the sanitizers."""
    program = folder / "bench_parts"
    sources = [HERE / "bench_parts.c", *(CORE / name for name in PARTS)]
    flags = ["-g", "-O1", *STRICT, "-DBENCH_POLL_S=0.002", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, *sources, "-lm", "-o", program], check=True, timeout=600)
    return program


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of_parts(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", CGROUPS)
def test_quota_and_throttling_are_those_of_the_own_cgroup(parts: Path, name: str, tmp_path: Path) -> None:
    files, quota, throttled = CGROUPS[name]
    found = said_by(parts, "cgroup", str(planted(tmp_path, files)))
    assert found == {"quota": quota, "throttled": throttled}


def said_by(parts: Path, *arguments: str | bytes, user: int | None = None) -> Any:
    # What the machine's description allocates stays until the program ends: no leaks are looked for.
    command = [parts, *arguments]
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, capture_output=True, timeout=600, check=False, env=environment, user=user)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.decode("utf-8"))


@pytest.mark.parametrize("name", TREES)
def test_the_machine_is_described_as_python_describes_it(parts: Path, name: str, tmp_path: Path) -> None:
    for path, text in TREES[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    expected = machine(tmp_path)
    found = said_by(parts, "machine", str(tmp_path), "2")
    described = json.loads(json.dumps(expected.to_json()))
    assert list(found["machine"]) == list(described)
    # Not known in C: Python's version, NumPy's, and the processor's name that `uname -p` may give.
    other = {"python": None, "numpy": None, "subbyte": "0.0-test"}
    if "proc/cpuinfo" not in TREES[name]:
        other["cpu"] = expected.architecture
    assert found["machine"] == {**described, **other}
    assert found["disturbances"] == disturbances(expected, threads=2)


def domain(root: Path, folder: str, name: str, step: int, start: int = 900, limit: int = 1000) -> None:
    (root / folder).mkdir(parents=True)
    files = {"name": name, "energy_uj": start, "step": step, "max_energy_range_uj": limit}
    for file, value in files.items():
        (root / folder / file).write_text(f"{value}\n")


def test_joules_follow_every_wrap_and_leave_out_what_lies_inside(parts: Path, tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 400)
    domain(tmp_path, "intel-rapl:0:0", "core", 300)
    domain(tmp_path, "intel-rapl:0:2", "dram", 70)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 400)
    domain(tmp_path, "intel-rapl:1", "psys", 900)
    found = said_by(parts, "energy", str(tmp_path), "0.15")
    energy = found["energy_measured"]
    assert found["energy_measured_missing"] == ""
    assert energy["domains"] == pytest.approx({"package-0": energy["calls"] * 4e-4, "dram-0": energy["calls"] * 7e-5})
    assert energy["joules_gross"] == pytest.approx(energy["calls"] * 4.7e-4)
    waits = energy["idle_w"] * energy["idle_window_s"] / 4.7e-4
    assert waits == pytest.approx(round(waits))
    assert energy["joules_net"] == pytest.approx(energy["joules_gross"] - energy["idle_w"] * energy["window_s"])
    assert energy["joules_per_call_gross"] == pytest.approx(4.7e-4)
    assert energy["ticks"] >= 100
    assert energy["source"] == "RAPL package-0 + dram-0 (powercap)"
    like = Energy(1.0, 1.0, 1.0, 1.0, 1.0, 1, 1, {}, "").to_json()
    assert list(energy) == list(like)
    assert {key: type(value) for key, value in energy.items()} == {key: type(value) for key, value in like.items()}
    assert energy["provenance"] == like["provenance"]


@pytest.mark.parametrize(
    ("step", "seconds", "reason"),
    [
        (400, "0.02", "the idle window of 0.0"),
        (0, "0.15", "the counter is frozen"),
        (None, "0.15", "no energy counter can be read on this machine. rapl: there is no RAPL counter in"),
    ],
)
def test_joules_that_cannot_be_had_have_a_reason(
    parts: Path, step: int | None, seconds: str, reason: str, tmp_path: Path
) -> None:
    domain(tmp_path, "intel-rapl:0", "psys" if step is None else "package-0", step or 0)
    found = said_by(parts, "energy", str(tmp_path), seconds)
    assert found["energy_measured"] is None
    assert reason in found["energy_measured_missing"]


def test_a_counter_that_holds_no_number(parts: Path, tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("n/a\n")
    found = said_by(parts, "energy", str(tmp_path), "0.1")
    assert "'n/a', expected a number of microjoules" in found["energy_measured_missing"]


@pytest.mark.parametrize("text", ["", "0x10", "-3", "5 6", "1001", "99999999999999999999999"])
def test_a_counter_beyond_its_range_is_refused(parts: Path, text: str, tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text(text)
    found = said_by(parts, "energy", str(tmp_path), "0.1")
    assert found["energy_measured"] is None
    assert f"holds {text if text == '1001' else repr(text)}, expected" in found["energy_measured_missing"]
    with pytest.raises(EnergyError, match=f"holds {text if text in ('1001', '-3') else repr(text)}, expected"):
        Rapl(tmp_path)


def test_dies_that_mirror_one_counter_count_once(parts: Path, tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0-die-0", 400)
    domain(tmp_path, "intel-rapl:0:2", "dram", 70)
    domain(tmp_path, "intel-rapl:1", "package-0-die-1", 400)
    domain(tmp_path, "intel-rapl:1:2", "dram", 70)
    domain(tmp_path, "intel-rapl:2", "package-1-die-0", 0)
    domain(tmp_path, "intel-rapl:3", "package-1-die-1", 0, start=5)
    energy = said_by(parts, "energy", str(tmp_path), "0.15")["energy_measured"]
    assert list(energy["domains"]) == ["package-0-die-0", "dram-0-die-0", "package-1-die-0", "package-1-die-1"]
    assert energy["source"].endswith("(powercap; left out: package-0-die-1, dram-0-die-1, the same counter)")
    assert energy["joules_gross"] == pytest.approx(energy["calls"] * 4.7e-4)


def test_no_domain_is_left_out_in_silence(parts: Path, tmp_path: Path) -> None:
    for package in range(64):
        domain(tmp_path, f"intel-rapl:{package}", f"package-{package}", 1)
    assert len(said_by(parts, "energy", str(tmp_path), "0.15")["energy_measured"]["domains"]) == 64
    domain(tmp_path, "intel-rapl:64", "package-64", 1)
    assert "more than 64 domains" in said_by(parts, "energy", str(tmp_path), "0.15")["energy_measured_missing"]


def test_a_masked_tree_says_what_python_says(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "masked" / "intel-rapl:0")
    with pytest.raises(EnergyError) as refused:
        Rapl(tmp_path)
    assert str(refused.value) in said_by(parts, "energy", str(tmp_path), "0.1")["energy_measured_missing"]


@pytest.mark.parametrize("file", ["name", "energy_uj", "max_energy_range_uj"])
def test_a_closed_file_says_what_python_says(parts: Path, file: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        root.chmod(0o755)
        domain(root, "intel-rapl:0", "package-0", 1)
        (root / "intel-rapl:0" / file).chmod(0o200)
        program = root / "bench_parts"
        shutil.copy(parts, program)
        with powerless(), pytest.raises(EnergyError) as refused:
            Rapl(root)
        found = said_by(program, "energy", str(root), "0.1", user=65534 if os.geteuid() == 0 else None)
    said = str(refused.value).replace("cannot read", "", 1)
    assert said in found["energy_measured_missing"]


def test_any_bytes_become_json_strings(parts: Path) -> None:
    texts = [
        b'"\\/',
        b"a\tb\nc\x01",
        "é€😀".encode(),
        b"\xff-\xc3",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe0\x80\x80",
    ]
    found = said_by(parts, "texts", *texts)
    assert found[:3] == [text.decode() for text in texts[:3]]
    assert all(set(text) <= {"\ufffd", "-"} and "\ufffd" in text for text in found[3:])


def test_numbers_keep_every_bit(parts: Path) -> None:
    numbers = [0.1, 1 / 3, 2995.2, 1e300, -5e-324, 3.0, 0.0, 123456789.123456789, math.pi * 1e-9]
    assert said_by(parts, "reals", *map(repr, numbers), "inf", "nan") == [*numbers, None, None]
