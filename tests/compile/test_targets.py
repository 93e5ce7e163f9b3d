"""Target rows: features by name, what LLVM is told, toolchains that are found or asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from this_machine import needs_x86_64

from subbyte.errors import RegistrationError, ToolchainError, UnknownNameError, UsageError, WriteError
from subbyte.runtime.features import FEATURES
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.emit.elf import ELF
from subbyte.tvm_kernels.installed_tools import examine_toolchains
from subbyte.tvm_kernels.machines import Target, all_targets, get_target, host, register_target
from subbyte.tvm_kernels.machines.architecture import Architecture, Tool, get_architecture, register_architecture
from subbyte.tvm_kernels.machines.boards.riscv_virt import riscv_virt
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.machines.riscv import RISCV32, RISCV64
from subbyte.tvm_kernels.machines.running import QemuUser
from subbyte.tvm_kernels.machines.x86 import X86_64
from subbyte.tvm_kernels.toolchain import LINE, find_static_toolchain, find_toolchain, run, zig_command

ROOT = Path(__file__).parents[2]


def test_the_promised_targets_are_there() -> None:
    names = [target.name for target in all_targets()]
    assert names[0] == "host"
    assert {"x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a53", "cortex-m4", "riscv64-linux", "rv32i"} <= set(names)


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cortex-m4'"):
        get_target("cortex-m5")


def test_levels_of_x86_64_contain_each_other() -> None:
    v2, v3, v4 = (get_target(f"x86-64-v{level}").features for level in (2, 3, 4))
    assert v2 < v3 < v4
    assert "avx" not in v2
    assert {"avx2", "fma"} <= v3
    assert {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} == v4 - v3


def test_features_come_from_cpuinfo_in_our_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(host, "machine", lambda: "x86_64")
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni sse4_1 unheard_of\n")
    assert host_features(path) == {"avx2", "avx512vnni", "sse41"}
    monkeypatch.setattr(host, "machine", lambda: "aarch64")
    path.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert host_features(path) == {"neon", "dotprod"}
    path.write_text("processor\t: 0\nFeatures\t: asimd asimddp\n\nprocessor\t: 1\nFeatures\t: asimd\n")
    assert host_features(path) == {"neon"}  # cores of two kinds: what both have, as the runtime asks


@needs_x86_64  # elsewhere the kernel is asked
def test_without_cpuinfo_the_cpu_itself_is_asked(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    assert host_features(tmp_path / "none") == host_features(Path("/proc/cpuinfo")) != frozenset()
    assert host_features(tmp_path / "empty") == host_features(Path("/proc/cpuinfo"))


def test_llvm_is_told_exactly_the_features_of_the_row() -> None:
    attributes = [str(a) for a in get_target("x86-64-v3").tvm_target().attrs["mattr"]]
    assert set(attributes) == {f"+{FEATURES[name].llvm}" for name in get_target("x86-64-v3").features}
    assert "-prefer-256-bit" in [str(a) for a in get_target("x86-64-v4").tvm_target().attrs["mattr"]]


def test_a_row_with_an_unknown_feature_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="avx512vnni"):
        dataclasses.replace(get_target("x86-64-v3"), features=frozenset({"avx512-vnni"}))


def test_features_of_another_architecture_are_refused() -> None:
    with pytest.raises(RegistrationError, match=r"'cortex-a53': aarch64-linux-gnu cannot have .* 'avx2'.* 'x86'"):
        dataclasses.replace(get_target("cortex-a53"), features=frozenset({"neon", "avx2"}))


def test_a_library_with_a_feature_that_no_cpu_tells_of_is_refused() -> None:
    assert get_target("cortex-m4").features == {"dsp"}
    with pytest.raises(RegistrationError, match="'cortex-m4': a CPU cannot be asked whether it has 'dsp'"):
        dataclasses.replace(get_target("cortex-m4"), emitter=ELF)


def test_a_user_can_add_a_target_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(get_target("cortex-a53"), name="mine")
    monkeypatch.setattr("subbyte.tvm_kernels.machines.register._rows", {})
    assert register_target(mine) is get_target("mine")
    with pytest.raises(RegistrationError, match="registered twice"):
        register_target(mine)
    with pytest.raises(RegistrationError, match="registered twice"):
        register_target(dataclasses.replace(mine, name="host"))
    with pytest.raises(RegistrationError, match="expects a Target, got 'mine'"):
        register_target("mine")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ToolchainError, match="apt install gcc-arm-none-eabi"):
        find_toolchain(get_target("cortex-m4"))


def test_zig_serves_when_there_is_no_system_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    toolchain = find_toolchain(get_target("cortex-a53"))
    assert toolchain.is_zig
    assert toolchain.c_flags == ("-mcpu=cortex_a53",)
    assert "aarch64-linux-gnu.2.17" in toolchain.compiler
    assert "aarch64-linux-musl" in find_static_toolchain(get_target("cortex-a53")).compiler


def test_the_doctor_names_a_way_to_get_every_tool() -> None:
    rows = examine_toolchains()
    assert all(row.remedy for row in rows)
    assert next(row for row in rows if row.what == "C compiler (host)").found
    compilers, emulators = (
        {name for row in rows if row.what.startswith(kind) for name in row.what.split("(")[1].rstrip(")").split(", ")}
        for kind in ("C compiler", "emulator")
    )
    assert {target.name for target in all_targets() if not target.is_native} <= compilers
    assert {target.name for target in all_targets() if target.emulator} == emulators


def test_ci_installs_the_tools_of_every_target() -> None:
    """.ci/run: `need PACKAGE COMMAND...`; each package is a target's tool, or one of those that other tests use."""
    listed = set(re.findall(r"^need ([\w.-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    wanted = {package for target in all_targets() for package in target.packages}
    assert listed == wanted | {"strace", "unzip", "dataset-fashion-mnist"}


# `host` has a name that no other may have; other fields have a default.
PARTS = [field.name for field in dataclasses.fields(Target) if field.default is dataclasses.MISSING]


@pytest.mark.parametrize("part", [part for part in PARTS if part != "features"])
@pytest.mark.parametrize("name", [target.name for target in all_targets() if target.name != "host"])
def test_a_target_without_a_part_is_refused(name: str, part: str) -> None:
    empty = None if part in ("architecture", "emitter", "run_by") else ""
    with pytest.raises(RegistrationError, match=rf"has no {part}"):
        dataclasses.replace(get_target(name), **{part: empty})


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("name", 7, "str"),
        ("architecture", 7, "Architecture"),
        ("architecture", "aarch64", "Architecture"),
        ("system", b"linux-gnu", "str"),
        ("emitter", "elf", "Emitter"),
        ("features", None, "a frozenset of str"),
        ("features", ["neon"], "a frozenset of str"),
        ("features", frozenset({1}), "a frozenset of str"),
        ("summary", 1.5, "str"),
        ("run_by", "qemu", "Native or QemuUser or Board"),
        ("cpu", None, "str"),
    ],
)
def test_a_target_with_a_part_of_another_type_is_refused(part: str, value: object, expected: str) -> None:
    with pytest.raises(RegistrationError, match=rf"its {part} is .* \({type(value).__name__}\), expected {expected};"):
        dataclasses.replace(get_target("cortex-a53"), **{part: value})


@pytest.mark.parametrize("target", [3, None, ["cortex-m4"], b"host"])
def test_a_target_that_is_no_name_is_refused_before_the_file_is_read(target: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a name that `subbyte targets` lists, or a Target"):
        compile(tmp_path / "none.onnx", target=target)


def test_a_board_runs_the_programs_of_its_cpu_alone() -> None:
    m4, rv32i = get_target("cortex-m4"), get_target("rv32i")
    with pytest.raises(RegistrationError, match="'riscv64-virt' runs programs for riscv64, not for riscv32"):
        dataclasses.replace(rv32i, run_by=riscv_virt(RISCV64, "rv64", frozenset("imafdc")))
    with pytest.raises(RegistrationError, match=r"'riscv32-virt': its CPU lacks m, which"):
        dataclasses.replace(rv32i, features=frozenset("m"))
    dataclasses.replace(rv32i, features=frozenset("m"), run_by=riscv_virt(RISCV32, "rv32", frozenset("im")))
    with pytest.raises(RegistrationError, match="'mps2-an385' runs programs for thumbv7m, not for thumbv7em"):
        dataclasses.replace(m4, run_by=get_target("cortex-m3").board)
    with pytest.raises(RegistrationError, match="runs programs for the CPU cortex-m4, cortex-m3, not for 'cortex-m7'"):
        dataclasses.replace(m4, cpu="cortex-m7")
    dataclasses.replace(get_target("cortex-m3"), run_by=m4.board)


@pytest.mark.parametrize("name", ["cortex-m3", "cortex-m4"])
def test_a_microcontroller_without_its_cpu_is_refused(name: str) -> None:
    """gcc would get an empty `-mcpu=`."""
    with pytest.raises(RegistrationError, match=r"has no cpu, by which compilers for thumb\w+ know the"):
        dataclasses.replace(get_target(name), cpu="")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QemuUser(" "), "qemu-user has no cpu"),
        (lambda: QemuUser(53), r"qemu-user: its cpu is 53 \(int\), expected str"),
        (lambda: Tool("", ("gcc",)), "tool '' has no command"),
        (lambda: Tool("gcc", ()), "tool 'gcc' has no packages"),
        (lambda: Tool("gcc", "gcc"), r"tool 'gcc': its packages is 'gcc' \(str\), expected a tuple of str"),
        (lambda: Tool("gcc", ("gcc", 9)), r"its packages is \('gcc', 9\) \(tuple\), expected a tuple of str"),
        (lambda: Architecture(""), "architecture '' has no machine"),
        (
            lambda: Architecture("x86_64", {"linux-gnu": "gcc"}),
            "its compilers is .*, expected a mapping of str to T",
        ),
        (
            lambda: Architecture("x86_64", glibc_floor=(2,)),
            "its glibc_floor is .*, expected a tuple of int, int",
        ),
        (lambda: Architecture("z80"), "'z80' is of no family of CPU features; add it to FAMILIES"),
        (lambda: Architecture("riscv32", multiplier="mul"), "its multiplier 'mul' is not one of its CPU features"),
        (lambda: Architecture("x86_64", multiplier="m"), "its multiplier 'm' is not one of its CPU features"),
        (lambda: Architecture("riscv64", X86_64.compilers), "it needs a glibc_floor and an emulator"),
        (lambda: Architecture("x86_64", any_cpu=""), "'x86_64' has no any_cpu, expected LLVM's name"),
        (lambda: register_architecture(X86_64), "'x86_64' is registered twice"),
        (lambda: register_architecture("x86_64"), "expects an Architecture, got 'x86_64'"),
    ],
)
def test_an_architecture_or_a_tool_without_a_part_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        make()


def test_an_architecture_that_has_no_file_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'riscv64'"):
        get_architecture("riscv65")
    with pytest.raises(UnknownNameError, match="unknown architecture 'None'"):
        get_architecture(None)  # type: ignore[arg-type]


def test_compilers_are_told_the_cpu_in_their_own_spelling() -> None:
    """gcc's name of an instruction set, zig's CPU with features, and for LLVM the ABI by name."""
    rv64, rv32 = get_target("riscv64-linux"), get_target("rv32i")
    assert rv64.architecture.c_flags(rv64, "gcc") == ("-march=rv64imafdc", "-mabi=lp64d")
    assert rv64.architecture.c_flags(rv64, "zig") == ("-mcpu=generic_rv64+m+a+f+d+c", "-mabi=lp64d")
    assert str(rv64.tvm_target().attrs["mabi"]) == "lp64d"
    assert rv32.architecture.c_flags(rv32, "gcc") == ("-march=rv32i", "-mabi=ilp32", "--specs=picolibc.specs")
    vector = dataclasses.replace(rv64, features=rv64.features | {"v", "zba", "zbb"})
    assert vector.architecture.c_flags(vector, "gcc")[0] == "-march=rv64imafdcv_zba_zbb"
    m4 = get_target("cortex-m4")
    assert m4.architecture.c_flags(m4, "gcc") == ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard")


def test_a_cpu_that_llvm_does_not_know_is_refused_with_the_nearest_name() -> None:
    for name, cpu, near in (
        ("cortex-a53", "cortex-a53x", "cortex-a53"),
        ("riscv64-linux", "sifive-u74x", "sifive-u74"),
    ):
        target = dataclasses.replace(get_target(name), cpu=cpu)
        with pytest.raises(UnknownNameError, match=rf"unknown CPU of .* '{cpu}'\. Did you mean '{near}"):
            target.tvm_target()
    for target in all_targets():
        target.check_cpu()


def test_llvm_knows_the_cpu_of_which_only_the_architecture_is_known() -> None:
    for name in ("x86-64-v3", "cortex-a53", "riscv64-linux", "host"):
        target = get_target(name)
        dataclasses.replace(target, cpu=target.architecture.any_cpu).check_cpu()
    assert get_target("host").cpu == get_target("host").architecture.any_cpu


def test_a_cpu_that_changes_no_option_of_the_c_compiler_is_refused() -> None:
    with pytest.raises(RegistrationError, match="'rv32i': cpu 'sifive-e31' would change nothing"):
        dataclasses.replace(get_target("rv32i"), cpu="sifive-e31")


@pytest.mark.parametrize("name", ["my board", "Cortex", "a/b", "x_y", "a\n"])
def test_a_name_of_other_characters_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="lower-case letters, digits"):
        dataclasses.replace(get_target("cortex-a53"), name=name)


def test_a_system_without_a_compiler_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RegistrationError, match=r"aarch64 with system 'none-eabi'.* apple-darwin, linux-gnu, windows-"):
        dataclasses.replace(get_target("cortex-a53"), system="none-eabi")
    with pytest.raises(RegistrationError, match="Systems of thumbv7em: none-eabi, none-eabihf;"):
        dataclasses.replace(get_target("cortex-m4"), system="linux-gnu")
    with pytest.raises(RegistrationError, match="thumbv7em has no qemu-user"):
        dataclasses.replace(get_target("cortex-m4"), run_by=QemuUser("cortex-m4"))
    with pytest.raises(RegistrationError, match="board 'mps2-an386' runs programs without an operating system"):
        dataclasses.replace(get_target("cortex-a53"), run_by=get_target("cortex-m4").board)


def test_what_a_compiler_repeats_is_said_once_and_long_lines_are_cut(tmp_path: Path) -> None:
    arguments = ["-mcpu=nothing", "-c"]
    for index in range(3):
        (tmp_path / f"{index}.c").write_text("int x;\n")
        arguments.append(f"{index}.c")
    with pytest.raises(ToolchainError, match="nothing") as failed:
        find_toolchain(get_target("cortex-a53")).compile(arguments, tmp_path)
    said = str(failed.value).splitlines()[1:]
    assert len(said) == len(set(said))
    assert max(map(len, said)) <= LINE + 4


def test_a_compiler_that_runs_out_of_descriptors_says_what_to_raise(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int x;\n")
    zig = zig_command()
    assert zig is not None
    with pytest.raises(WriteError, match="too many files are open; raise the limit"):
        run(["sh", "-c", 'ulimit -n 12 && exec "$@"', "sh", *zig, "cc", "-c", "a.c"], tmp_path)
