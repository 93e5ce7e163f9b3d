"""A library loads on older Linux than the one that compiled it: no symbol needs more than the target's oldest glibc."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hand_plan import Example
from this_machine import with_mount

from subbyte.errors import BundleError, ToolchainError
from subbyte.runtime.host import check_target, system_glibc
from subbyte.runtime.manifest import TargetInfo
from subbyte.tvm_kernels import toolchain as toolchains
from subbyte.tvm_kernels.emit import Emitted, Golden, compile_plan
from subbyte.tvm_kernels.emit.core import C_FLAGS, CORE, core_folder
from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.emit.glibc import needed_glibc
from subbyte.tvm_kernels.machines import Target, get_target
from subbyte.tvm_kernels.machines.architecture import get_architecture
from subbyte.tvm_kernels.machines.running import Native
from subbyte.tvm_kernels.toolchain import find_zig


@pytest.fixture(scope="module")
def example() -> Example:
    return Example()


def bound_versions(library: bytes, folder: Path) -> dict[str, tuple[int, int]]:
    """What readelf says: the glibc version of each symbol that has one."""
    path = folder / "read.so"
    path.write_bytes(library)
    command = ["readelf", "--dyn-syms", "--wide", path]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r" (\w+)@+GLIBC_(\d+)\.(\d+)", listed)
    assert found, listed
    return {name: (int(major), int(minor)) for name, major, minor in found}


@pytest.mark.parametrize("name", ["host", "x86-64-v3", "cortex-a53"])
def test_no_symbol_is_newer_than_the_oldest_glibc(name: str, example: Example, tmp_path: Path) -> None:
    target = get_target(name)
    floor = {"x86_64": (2, 17), "aarch64": (2, 17), "riscv64": (2, 27)}[target.architecture.machine]
    emitted = compile_plan(example.plan, target, Golden(example.inputs, example.outputs))
    versions = bound_versions(emitted.members["library.so"], tmp_path)
    assert "pthread_create" in versions
    assert max(versions.values()) <= floor
    assert emitted.glibc == f"{floor[0]}.{floor[1]}"
    assert emitted.notes == ()


@pytest.mark.parametrize(("architecture", "floor"), [("x86_64", (2, 17)), ("aarch64", (2, 17)), ("riscv64", (2, 27))])
def test_zig_links_the_core_for_each_architecture(architecture: str, floor: tuple[int, int], tmp_path: Path) -> None:
    features = frozenset("imafdc" if architecture == "riscv64" else ())
    mine = Target("mine", get_architecture(architecture), "linux-gnu", ELF, features, "a machine", Native())
    zig = find_zig(mine)
    assert zig is not None, "pip install ziglang"
    zig.compile([*C_FLAGS, "-shared", "-o", "core.so", *(core_folder() / name for name in CORE), "-lpthread"], tmp_path)
    library = (tmp_path / "core.so").read_bytes()
    versions = bound_versions(library, tmp_path)
    assert max(versions.values()) <= floor
    assert needed_glibc(library) == versions


def test_a_system_compiler_serves_where_it_needs_no_newer_glibc(
    example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "glibc_floor", (99, 0))
    emitted = compile_plan(example.plan, get_target("host"))
    assert emitted.compiler is not None
    assert "zig" not in emitted.compiler
    assert emitted.glibc == "99.0"


def own(emitted: Emitted, folder: Path, remedy: str) -> None:
    """The system's compiler made it; the manifest's version is the newest that readelf finds, and a note says it."""
    versions = bound_versions(emitted.members["library.so"], folder)
    assert needed_glibc(emitted.members["library.so"]) == versions
    newest = max(versions.values())
    assert emitted.compiler is not None
    assert "zig" not in emitted.compiler
    if newest > (2, 17):
        assert emitted.glibc == f"{newest[0]}.{newest[1]}"
        (note,) = emitted.notes
        assert f"needs glibc {emitted.glibc}" in note
        assert remedy in note


def test_without_zig_a_note_says_what_the_library_needs(
    example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchains, "zig_command", lambda: None)
    own(compile_plan(example.plan, get_target("host")), tmp_path, "pip install ziglang")


def test_a_compiler_that_the_user_names_is_kept(
    example: Example, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "gcc")
    own(compile_plan(example.plan, get_target("host")), tmp_path, "leave out CC")


def test_what_is_no_library_of_64_bits_is_refused() -> None:
    with pytest.raises(ToolchainError, match="64-bit little-endian ELF"):
        needed_glibc(b"\x7fELF\x01\x01" + bytes(64))
    with pytest.raises(ToolchainError, match="version table"):
        needed_glibc(b"\x7fELF\x02\x01" + bytes(20))


def test_a_bundle_for_a_newer_glibc_is_refused_before_it_is_loaded() -> None:
    here = get_target("host")
    assert system_glibc() is None or re.fullmatch(r"2\.\d+.*", system_glibc() or "")
    check_target(TargetInfo("host", here.triple, "library", (), "2.17"))
    if system_glibc() is not None:
        with pytest.raises(BundleError, match=rf"needs glibc 99\.0, this system has {system_glibc()}.*ziglang"):
            check_target(TargetInfo("host", here.triple, "library", (), "99.0"))


# Compiles a plan, replay included, and runs the bundle.
COMPILE = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from subbyte.runtime import load
from subbyte.tvm_kernels.compiler import bundle_plan
from subbyte.tvm_kernels.emit import Golden
from subbyte.tvm_kernels.machines import get_target
from hand_plan import Example
example = Example()
report = bundle_plan(example.plan, get_target("host"), sys.argv[2], Golden(example.inputs, example.outputs))
assert report.not_replayed is None, report
with load(sys.argv[2], threads=2) as session:
    found = session.run(list(example.inputs))
for got, want in zip(found.values(), example.outputs, strict=True):
    np.testing.assert_array_equal(got, want)
print(report.library)
"""

NO_PLACE_TO_WRITE = """
import errno, os, subprocess
try:
    open(os.environ["HOME"] + "/file", "w")
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    raise SystemExit("HOME can be written")
with open(os.environ["TMPDIR"] + "/program", "w", opener=lambda path, flags: os.open(path, flags, 0o755)) as file:
    file.write("#!/bin/sh\\n")
try:
    subprocess.run([file.name])
except PermissionError:
    pass
else:
    raise SystemExit("TMPDIR lets programs run")
"""


def test_compiles_and_loads_with_a_noexec_tmpdir_and_a_read_only_home(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    mounts = f"mount -t tmpfs -o ro tmpfs {home} && mount -t tmpfs -o noexec tmpfs {temporary}"
    names = ("ZIG_GLOBAL_CACHE_DIR", "XDG_CACHE_HOME", "CC")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    words = [sys.executable, "-c", NO_PLACE_TO_WRITE + COMPILE, str(Path(__file__).parent), str(tmp_path / "m.subbyte")]
    done = subprocess.run(
        with_mount(mounts, *words),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "library.so" in done.stdout


NO_HOME = """
import os, pwd
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown
assert os.path.expanduser("~") == "~"
"""


def test_compiles_for_a_user_without_a_home(tmp_path: Path) -> None:
    """The user of a container: a number that no passwd file has, and no HOME."""
    names = ("HOME", "XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR", "CC")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", NO_HOME + COMPILE, str(Path(__file__).parent), str(tmp_path / "m.subbyte")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "library.so" in done.stdout
