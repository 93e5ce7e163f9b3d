"""Which bundles a machine may run, and what Python reads of its CPU without a library, on fake files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from subbyte.errors import BundleError, UsageError
from subbyte.runtime import host
from subbyte.runtime.benchmark import pinned
from subbyte.runtime.features import canonical
from subbyte.runtime.manifest import TargetInfo
from subbyte.runtime.systems import system_of

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


@pytest.mark.parametrize(
    ("triple", "name"),
    [
        ("x86_64-unknown-linux-gnu", "linux"),
        ("aarch64-linux-android", "linux"),
        ("aarch64-apple-darwin", "macos"),
        ("arm64-apple-macosx14.0", "macos"),
        ("x86_64-pc-windows-msvc", "windows"),
        ("thumbv7em-none-eabihf", None),
        ("x86_64-unknown-freebsd", None),
        ("linux", None),
    ],
)
def test_the_system_of_a_triple(triple: str, name: str | None) -> None:
    found = system_of(triple)
    assert (found.name if found else None) == name


def test_source_bundles_say_how_to_build_them() -> None:
    with pytest.raises(BundleError, match=r"C source.*unpack it .*source/\*\.c.*-ffp-contract=off"):
        host.check_target(target("thumbv7em-none-eabi", emitter="source"))
