"""What the C core says that a CPU lacks, on emulated CPUs that have a feature and that have it not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from emulators import emulate_linux

from subbyte.runtime.features import FAMILIES, FEATURES, features_of
from subbyte.tvm_kernels.emit.core import core_folder

pytestmark = pytest.mark.device

ASK = """
#include <stdio.h>
#include "internal.h"
int main(int count, char **names) {
  static subbyte_model model;
  char missing[1024];
  model.abi = SUBBYTE_ABI;
  model.features = count > 1 ? names[1] : NULL;
  printf("%d %d ", (int)subbyte_ask_for(&model), (int)subbyte_missing_features(&model, missing, sizeof missing));
  puts(missing);
  return 0;
}
"""
# Stands for Linux 6.4, which the emulator may be older than: the answer to riscv_hwprobe, system call 258.
HWPROBE = """
#include <stdarg.h>
#include <stdint.h>
long __wrap_syscall(long number, ...) {
  struct { int64_t key; uint64_t value; } *pair;
  va_list rest;
  va_start(rest, number);
  pair = va_arg(rest, void *);
  if (number != 258 || pair->key != 4 || va_arg(rest, long) != 1) return -1;
  va_end(rest);
  pair->value = ANSWER;
  return 0;
}
"""
ALL = " ".join(FEATURES)


def built(machine: str, folder: Path, *more: str) -> Path:
    compiler = f"{machine}-linux-gnu-gcc"
    assert shutil.which(compiler), f"apt install gcc-{machine}-linux-gnu"
    (folder / "ask.c").write_text(ASK)
    core = core_folder()
    command = [compiler, "-std=c99", "-O2", "-static", f"-I{core}", "ask.c", str(core / "needs.c"), *more, "-o", "ask"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "ask"


def has(machine: str, program: Path, cpu: str) -> set[str]:
    """The features that the core finds there; every other one, of other machines too, is named as missing."""
    done = emulate_linux(machine, program, f"{ALL} unheard-of", cpu=cpu)
    assert done.returncode == 0, done.stderr
    status, count, *missing = done.stdout.split()
    assert (status, int(count)) == ("6", len(missing))
    assert "unheard-of" in missing
    found = set(FEATURES) - set(missing)
    assert found <= {row.name for row in features_of(machine)}
    enough = emulate_linux(machine, program, " ".join(sorted(found)), cpu=cpu)
    assert enough.stdout.split() == ["0", "0"]
    return found


@pytest.mark.parametrize(
    ("machine", "cpu", "expected"),
    [
        ("aarch64", "cortex-a53", {"neon"}),
        ("aarch64", "neoverse-n1", {"neon", "dotprod"}),
        ("aarch64", "max", {"neon", "dotprod", "i8mm", "sve"}),
        ("riscv64", "rv64,v=false", set("imafdc")),
        ("riscv64", "rv64,v=true", set("imafdcv")),
        ("x86_64", "Nehalem", {"ssse3", "sse41", "sse42", "popcnt"}),
    ],
)
def test_what_a_cpu_has(machine: str, cpu: str, expected: set[str], tmp_path: Path) -> None:
    found = has(machine, built(machine, tmp_path), cpu)
    probed = {row.name for row in features_of(machine) if row.bit and row.bit.word == "HWPROBE_IMA_EXT_0"}
    assert found - probed == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(0, set()), (1 << 4, {"zbb"}), (1 << 3 | 1 << 5, {"zba", "zbs"}), (0x3F, {"zba", "zbb", "zbs"})],
)
def test_riscv_extensions_are_asked_of_linux(answer: int, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "hwprobe.c").write_text(HWPROBE)
    program = built("riscv64", tmp_path, "hwprobe.c", f"-DANSWER={answer}", "-Wl,--wrap=syscall")
    assert has("riscv64", program, "rv64,v=false") == set("imafdc") | expected


def test_a_cpu_without_linux_cannot_be_asked(tmp_path: Path) -> None:
    """What needs a feature is refused there; C sources need none. The emulator runs no Arm code of profile M."""
    assert [name for name, family in FAMILIES.items() if not family.words] == ["arm-m"]
    assert shutil.which("arm-none-eabi-gcc"), "apt install gcc-arm-none-eabi"
    (tmp_path / "ask.c").write_text(
        ASK.replace("int main(int count, char **names)", "int ask(int count, char **names)")
        + """
int main(void) {
  char *names[] = {"", "dsp unheard-of"};
  ask(1, names);
  ask(2, names);
  return 0;
}
"""
    )
    core = core_folder()
    command = ["arm-none-eabi-gcc", "--specs=rdimon.specs", f"-I{core}", "ask.c", str(core / "needs.c"), "-o", "ask"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = emulate_linux("arm", tmp_path / "ask")
    assert done.stdout.splitlines() == ["0 0 ", "6 2 dsp unheard-of"], done.stderr
