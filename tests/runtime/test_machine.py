"""What we say of a machine, and which bundles it may run, on fake /proc and /sys trees."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from subbyte.errors import BundleError, UsageError
from subbyte.runtime import host
from subbyte.runtime.benchmark import pinned
from subbyte.runtime.features import canonical
from subbyte.runtime.machine import disturbances, machine
from subbyte.runtime.manifest import TargetInfo

X86 = """processor : 0
vendor_id : GenuineIntel
model name : Test CPU @ 3.00GHz
cpu MHz : 2995.2
flags : fpu sse4_1 sse4_2 abm bmi1 avx2 fma avx512f avx512_vnni avx512_vpopcntdq avx_vnni hypervisor

processor : 1
flags : fpu
"""
ARM_BIG_LITTLE = """processor : 0
Features : fp asimd aes crc32 atomics asimddp i8mm
CPU part : 0xd4d

processor : 1
Features : fp asimd aes crc32
"""
RISCV = """processor : 0
isa : rv64imafdcv_zicsr_zba_zbb
"""


def cpuinfo(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(text)
    return path


def target(triple: str | None = None, features: tuple[str, ...] = (), emitter: str = "library") -> TargetInfo:
    return TargetInfo("some-cpu", triple or f"{os.uname().machine}-unknown-linux-gnu", emitter, features)


@pytest.mark.parametrize(
    ("text", "has", "lacks"),
    [
        (
            X86,
            ("avx512vnni", "avx512_vnni", "avx512vpopcntdq", "avxvnni", "lzcnt", "abm", "bmi", "bmi1", "sse41"),
            ("amx",),
        ),
        (ARM_BIG_LITTLE, ("neon", "asimd", "crc32"), ("dotprod", "i8mm", "sve")),
        (RISCV, ("v", "m", "zba"), ("zbs",)),
        ("", (), ("avx2",)),
    ],
    ids=["x86", "big.LITTLE", "riscv", "empty"],
)
def test_features_of_every_core(tmp_path: Path, text: str, has: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    found = host.cpu_features(cpuinfo(tmp_path, text))
    assert {canonical(name) for name in has} <= found
    assert not {canonical(name) for name in lacks} & found


def test_a_target_that_fits(tmp_path: Path) -> None:
    path = cpuinfo(tmp_path, X86)
    host.check_target(target(features=("avx2", "sse41", "sse4.2", "avx512vnni", "abm")), path)
    host.check_target(target(), tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere", "No such file"), ("folder", "not a plain file"), ("empty", "no line 'flags'")]
)
def test_a_named_description_of_the_cpu_that_says_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """A CPU without any feature would be the result, and slow code for it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("import numpy\n")
    path = tmp_path / name
    if name != "empty":
        assert host.cpu_features(path) == host._auxiliary_features()  # of the system, which may hide it
    monkeypatch.setenv("SUBBYTE_CPUINFO", str(path))
    with pytest.raises(UsageError, match=f"^SUBBYTE_CPUINFO names '.*{name}'.*{said}"):
        host.cpu_features(path)


def test_missing_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"this CPU lacks amx-int8, gfni\. .*subbyte compile .*--target.*`subbyte targets`"
    ) as caught:
        host.check_target(target(features=("avx2", "amx-int8", "gfni")), cpuinfo(tmp_path, X86))
    assert "'some-cpu'" in str(caught.value)


def test_features_that_the_system_hides_are_not_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "machine", lambda: "mips64")
    with pytest.raises(BundleError, match="does not list the features of this CPU"):
        host.check_target(target("mips64-linux-gnu", features=("msa",)), tmp_path / "none")


def test_without_cpuinfo_the_kernel_is_asked_on_arm_and_riscv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {16: 1 << 1 | 1 << 20, 26: 1 << 13}

    class Libc:
        @staticmethod
        def getauxval(word: int) -> int:
            return words.get(word, 0)

    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: Libc)
    monkeypatch.setattr(host, "machine", lambda: "aarch64")
    assert host.cpu_features(tmp_path / "none") == {"neon", "dotprod", "i8mm"}
    with pytest.raises(BundleError, match="this CPU lacks sve"):
        host.check_target(target("aarch64-linux-gnu", features=("neon", "sve")), tmp_path / "none")
    monkeypatch.setattr(host, "machine", lambda: "riscv64")
    words[16] = sum(1 << ord(letter) - ord("a") for letter in "imafdcv")
    assert host.cpu_features(tmp_path / "none") == set("imafdcv")
    monkeypatch.setattr(host, "machine", lambda: "x86_64")  # there the bits are others
    assert host.cpu_features(tmp_path / "none") == frozenset()


def test_a_system_that_hides_and_forbids_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert host.why_not_pinned() is None
    monkeypatch.setattr(os, "sched_setaffinity", refused)
    assert "sched_setaffinity: Operation not permitted" in str(host.why_not_pinned())
    monkeypatch.setattr(os, "sched_getaffinity", refused)
    assert 1 <= len(host.physical_cpus()) <= (os.cpu_count() or 1)
    with pinned(1) as cpus:
        assert cpus == ()


@pytest.mark.parametrize(
    "triple", ["m68k-linux-gnu", "x86_64-windows-gnu", "aarch64-apple-macos", "wasm32", "", "armv7em-none-eabi"]
)
def test_another_machine_or_system(triple: str) -> None:
    with pytest.raises(BundleError, match=r"this machine is .*-linux.*subbyte compile"):
        host.check_target(TargetInfo("t", triple, "library", ()))


def test_source_bundles_say_how_to_build_them() -> None:
    with pytest.raises(BundleError, match=r"C source.*unpack it .*source/\*\.c.*-ffp-contract=off"):
        host.check_target(target("thumbv7em-none-eabi", emitter="source"))


def fake_root(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_machine_from_a_tree(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = fake_root(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/loadavg": "3.25 1.0 0.5 2/300 1234\n",
            "proc/meminfo": "MemTotal: 2048 kB\nMemAvailable: 1024 kB\nHugePages: 0\n",
            "proc/sys/kernel/osrelease": "6.1.0-test\n",
            "etc/os-release": 'NAME="X"\nPRETTY_NAME="Test Linux 1"\n',
            f"{cpu}/cpu0/topology/thread_siblings_list": "0,2\n",
            f"{cpu}/cpu1/topology/thread_siblings_list": "1,3\n",
            f"{cpu}/cpu2/topology/thread_siblings_list": "0,2\n",
            f"{cpu}/cpu3/topology/thread_siblings_list": "1,3\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq": "3600000\n",
            f"{cpu}/intel_pstate/no_turbo": "1\n",
            "sys/class/thermal/thermal_zone0/temp": "40000\n",
            "sys/class/thermal/thermal_zone1/temp": "91000\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
    )
    found = machine(root)
    assert (found.cpu, found.physical_cores, found.usable_cores) == ("Test CPU @ 3.00GHz", 2, 1)
    assert (found.governor, found.mhz, found.mhz_max, found.boost) == ("powersave", 1800.0, 3600.0, False)
    assert (found.memory_bytes, found.memory_available_bytes) == (2 << 20, 1 << 20)
    assert (found.system, found.kernel, found.virtualised) == ("Test Linux 1", "6.1.0-test", True)
    assert (found.load_1min, found.temperature_c) == (3.25, 91.0)
    assert "avx512vnni" in found.features
    said = " ".join(disturbances(replace(found, logical_cpus=2), threads=2))
    for word in ("load 3.2", "powersave", "virtual machine", "91 C", "2 threads share 1 cores"):
        assert word in said


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert (found.mhz, found.governor, found.load_1min, found.memory_bytes, found.virtualised) == (None,) * 5
    assert found.cpu
    assert found.usable_cores >= 1


@pytest.mark.parametrize("text", ["nan", "inf", "0x10", "1_000", "1e3", "\u0663", "", "5 x"])
def test_what_is_no_number_is_not_told(tmp_path: Path, text: str) -> None:
    files = dict.fromkeys(("proc/loadavg", "sys/class/thermal/thermal_zone0/temp"), text)
    files["proc/meminfo"] = f"MemTotal: {text} kB\n"
    files["proc/cpuinfo"] = f"cpu MHz : {text}\n"
    files["sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"] = text
    found = machine(fake_root(tmp_path, files))
    assert (found.mhz, found.mhz_max, found.temperature_c, found.memory_bytes) == (None,) * 4
    assert found.load_1min == (5.0 if text == "5 x" else None)


def test_a_quiet_machine_has_nothing_to_say(tmp_path: Path) -> None:
    quiet = replace(machine(tmp_path), load_1min=0.1, governor="performance", virtualised=False, usable_cores=4)
    assert disturbances(quiet, threads=2) == []
