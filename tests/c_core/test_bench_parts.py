"""What the C core and the bench program say of machine, energy and cgroups, on made-up trees; Python says the same."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from this_machine import needs_x86_64

import subbyte
import subbyte.runtime
from subbyte.errors import EnergyError
from subbyte.runtime import host, write_bundle
from subbyte.runtime.energy import Energy
from subbyte.runtime.features import TILE_FEATURES, features_of
from subbyte.runtime.machine import Machine
from subbyte.runtime.rapl import Rapl
from subbyte.tvm_kernels.emit.core import MEASURE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "runtime"))
from cgroup_trees import GROUP, V2, planted, stat  # noqa: E402, F401
from cgroup_trees import TREES as CGROUPS  # noqa: E402
from fake_meters import powerless  # noqa: E402
from tiny_bundle import build_library, tiny_manifest, tiny_members  # noqa: E402

CORE = Path(subbyte.runtime.__file__).parent / "c"
PARTS = (*MEASURE, "bench_open.c", "bench_energy.c", "run.c", "failure.c", "needs.c", "cores.c")
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
EMULATED = "this program runs under an emulator: its times are not those of the machine"
NOTHING = dict.fromkeys(
    ("governor", "mhz", "mhz_min", "mhz_max", "boost", "temperature_c", "load_1min", "memory_bytes", "virtualised")
)
# A tree of files, and what is said of it beside NOTHING.
TREES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "laptop": (
        LAPTOP,
        {"cpu": "Test CPU @ 3.00GHz", "physical_cores": 2, "usable_cores": 1, "governor": "powersave"}
        | {"mhz": 1800.123, "mhz_min": 400.0, "mhz_max": 3600.0, "boost": False, "temperature_c": 91.5}
        | {"load_1min": 3.25, "memory_bytes": 2 << 20, "memory_available_bytes": 1 << 20}
        | {"system": "Test Linux 1 \xe9", "kernel": "6.1.0-test", "virtualised": True},
    ),
    "big-little": (
        {"proc/cpuinfo": BIG_LITTLE, "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"},
        {"cpu": "0xd4d", "virtualised": True},
    ),
    "risc-v": (
        {"proc/cpuinfo": "processor : 0\nisa : rv64imafdcv_zba\nuarch : sifive,u74\n"},
        {"cpu": "sifive,u74"},
    ),
    "no name": (
        {"proc/cpuinfo": "flags : x nohypervisor\nmodel name :\nHardware : Board\n"},
        {"cpu": "Board", "virtualised": False},
    ),
    "quiet": (
        {"proc/loadavg": "0.01 0 0", f"{CPU}/cpufreq/boost": "1", "sys/hypervisor/type": "xen"},
        {"load_1min": 0.01, "boost": True, "virtualised": True},
    ),
    "odd": (
        {"proc/meminfo": "MemTotal: many kB\n", "proc/loadavg": "busy", "etc/os-release": "PRETTY_NAME=\n"}
        | {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "0", "sys/class/dmi/id/sys_vendor": "Dell Inc.\n"},
        {"system": "Linux", "virtualised": False},
    ),
    "no numbers": (
        {"proc/cpuinfo": "cpu MHz : nan\n", "proc/meminfo": "MemTotal: 0x10 kB\nMemAvailable: 1_0 kB\n"}
        | {"proc/loadavg": "inf 1 1", f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1e6"}
        | {f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "36 00000", "sys/class/thermal/thermal_zone0/temp": "-12500"},
        {"temperature_c": -12.5, "memory_available_bytes": None},
    ),
    "only cpuinfo's clock": ({"proc/cpuinfo": "cpu MHz : 2995.2\n"}, {"mhz": 2995.2}),
    "empty": ({}, {}),
}


def program_of_parts(folder: Path) -> Path:
    """bench_parts, under the sanitizers."""
    program = folder / "bench_parts"
    sources = [HERE / "bench_parts.c", *(CORE / name for name in PARTS)]
    flags = ["-g", "-O1", *STRICT, "-DBENCH_POLL_S=0.002", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["gcc", *flags, *sources, "-lm", "-lpthread", "-o", program], check=True, timeout=600)
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
    command = [parts, *arguments]
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}  # bench allocates until the program ends
    done = subprocess.run(command, capture_output=True, timeout=600, check=False, env=environment, user=user)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.decode("utf-8"))


@pytest.mark.parametrize("name", TREES)
def test_the_machine_is_what_its_files_say(parts: Path, name: str, tmp_path: Path) -> None:
    """What Python reads without a library, too, is the same."""
    files, said = TREES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    found = said_by(parts, "machine", str(tmp_path), "2")["machine"]
    assert list(found) == [field.name for field in dataclasses.fields(Machine)]
    assert {key: found[key] for key in (*NOTHING, *said)} == {**NOTHING, **said}
    assert (found["python"], found["numpy"], found["subbyte"]) == (None, None, "0.0-test")
    assert found["cpu"] == host.cpu_name(tmp_path / "proc/cpuinfo")
    assert (found["architecture"], found["logical_cpus"]) == (host.machine(), os.cpu_count())
    assert found["usable_cores"] == host.usable_cores(tmp_path)
    if Path("/proc/cpuinfo").exists():  # the CPU is asked, whatever the tree says
        has = host.cpu_features(Path("/proc/cpuinfo"))
        tiles = set() if host.permits_amx() else TILE_FEATURES
        assert set(found["features"]) - tiles == {row.name for row in features_of(host.machine())} & has - tiles


def test_what_disturbs_is_said_with_what_to_do(parts: Path, tmp_path: Path) -> None:
    planted(tmp_path, {**LAPTOP, "proc/loadavg": "900.5 1 1"})
    assert said_by(parts, "machine", str(tmp_path), "2")["warnings"] == [
        f"other programs load this machine (load 900.5 on {os.cpu_count()} CPUs): stop them",
        "the clock follows the load (governor 'powersave'): cpupower frequency-set -g performance",
        "this is a virtual machine: its host may take the CPU away unseen",
        "the CPU is at 92 C and may throttle: cool it",
        "2 threads share 1 cores: use fewer threads",
    ]
    still = {"proc/loadavg": "0.1 1 1", f"{CPU}/cpu0/cpufreq/scaling_governor": "performance"}
    quiet = planted(tmp_path / "quiet", still)
    assert said_by(parts, "machine", str(quiet), "1")["warnings"] == []


@needs_x86_64
@pytest.mark.parametrize("row", ["CPU implementer : 0x41", "hart : 0"])
def test_the_description_of_another_cpu_is_that_of_an_emulators_host(parts: Path, row: str, tmp_path: Path) -> None:
    planted(tmp_path, {**LAPTOP, "proc/cpuinfo": f"processor : 0\nmodel name : Neoverse\n{row}\n"})
    found = said_by(parts, "machine", str(tmp_path), "1")
    assert found["warnings"][0] == EMULATED
    of_the_host = ("cpu", "governor", "mhz", "mhz_min", "mhz_max", "boost", "temperature_c", "virtualised")
    assert [found["machine"][key] for key in of_the_host] == [None] * 8
    assert found["machine"]["memory_bytes"] == 2 << 20
    planted(tmp_path, {"proc/cpuinfo": f"vendor_id : GenuineIntel\nmodel name : Xeon\n{row}\n"})
    found = said_by(parts, "machine", str(tmp_path), "1")
    assert found["machine"]["cpu"] == "Xeon"
    assert EMULATED not in found["warnings"]


@needs_x86_64
def test_python_says_so_too(tmp_path: Path) -> None:
    """The library of a bundle, built for another root of /proc."""
    root = planted(tmp_path / "root", {"proc/cpuinfo": "CPU implementer : 0x41\nmodel name : Neoverse\n"})
    library = build_library(tmp_path, f'-DSUBBYTE_ROOT="{root}"')
    bundle = write_bundle(tmp_path / "tiny.subbyte", tiny_manifest(), tiny_members(library))
    result = subbyte.bench(bundle, iterations=3, warmup=0, cold=False, energy=False)
    assert EMULATED in result.warnings
    assert (result.machine.cpu, result.machine.mhz) == (None, None)
    assert (result.machine.numpy, result.machine.subbyte) == (np.__version__, subbyte.__version__)
    assert f"machine: {host.machine()}, " in str(result)
    assert f"warning: {EMULATED}" in str(result)


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
