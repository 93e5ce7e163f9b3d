"""rv32i: the generated C on an emulated CPU without a multiplier, where multiplications are illegal instructions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from accumulation_loops import PREFIX, Function, accumulating, functions, multiplications_and_calls
from emulators import emulate_board
from low_bit_models import small_model

from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.emit.source_files import C_FLAGS, EXAMPLE_FILES, MODEL_FILES
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.toolchain import zig_command

pytestmark = pytest.mark.device

TARGET = get_target("rv32i")
FLAGS = [*TARGET.architecture.c_flags(TARGET, "gcc"), *C_FLAGS]
WITHOUT_MULTIPLICATION = ("pow2", "ternary", "binary")


def build(name: str, scheme: str, folder: Path) -> CompileReport:
    return compile(small_model(name, scheme), folder / "m.subbyte", target=TARGET, strict=True, keep=folder / "kept")


def kernel_of(function: Function) -> str:
    """The kernel row's name in that of a function: subbyte_MODEL_kNUMBER_ROW."""
    return re.sub(r".*_k\d+_", "", function.name).replace("_", "-")


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8"])
@pytest.mark.parametrize("scheme", ["int8", *WITHOUT_MULTIPLICATION])
def test_the_board_gives_the_golden_bits(name: str, scheme: str, tmp_path: Path) -> None:
    assert "rv32,m=false" in TARGET.board.command()
    report = build(name, scheme, tmp_path)
    assert report.flash_bytes is not None
    assert report.flash_bytes > report.weights_bytes
    status, lines = emulate_board(tmp_path / "kept" / "source", "rv32i")
    assert status == 0, lines
    assert "output 0 differing 0" in lines
    assert "golden ok" in lines


@pytest.mark.parametrize("name", ["ds_cnn", "resnet8"])
@pytest.mark.parametrize("scheme", WITHOUT_MULTIPLICATION)
def test_no_accumulation_loop_multiplies_or_calls(name: str, scheme: str, tmp_path: Path) -> None:
    """In the kernels of all products with weights of that scheme; those of int8, its first and last layers, do."""
    report = build(name, scheme, tmp_path)
    found, source = functions(tmp_path / "kept" / "source", FLAGS)
    low_bit = {row.kernel for row in report.rows if row.macs and row.weights.startswith(scheme)}
    int8 = {row.kernel for row in report.rows if row.macs and row.weights == "int8"}
    assert low_bit
    assert not low_bit & int8
    multiplying = {kernel_of(f) for f in found.values() if any(one.called == "__mulsi3" for one in f.code.values())}
    assert multiplying == int8  # in no other kernel, nor in the index arithmetic of any
    for names, multiplies in ((low_bit, False), (int8, True)):
        for function in [f for f in found.values() if kernel_of(f) in names]:
            loops = accumulating(function, source)
            assert loops, function.name
            wrong = [what for loop in loops for what in multiplications_and_calls(loop)]
            assert set(wrong) == ({"__mulsi3"} if multiplies else set()), function.name


def test_a_loop_is_found_where_it_is(tmp_path: Path) -> None:
    """Of nested loops the inner one; of two that accumulate both; a call and a multiplication in them are seen."""
    (tmp_path / "kernels.c").write_text(
        """int unknown(int);
int sums(int *restrict x, const int *restrict y, int n) {
  for (int i = 0; i < n; ++i) {
    x[i] = unknown(i);
    for (int j = 0; j < n; ++j)
      x[i] = (x[i] + y[j] * y[i + j]);
  }
  for (int j = 0; j < n; ++j)
    y += unknown(j);
  for (int j = 0; j < n; ++j)
    x[j] = (x[j] ^ y[j]);
  return 0;
}
"""
    )
    flags = ["-mabi=ilp32", "-O1", "-ffunction-sections"]
    for extension, inside in (("rv32i", "__mulsi3"), ("rv32im", "mul")):
        found, source = functions(tmp_path, [f"-march={extension}", *flags])
        assert len(found["sums"].loops()) == 3
        assert [multiplications_and_calls(loop) for loop in accumulating(found["sums"], source)] == [[inside], []]
        assert ["unknown"] in [multiplications_and_calls(loop) for loop in found["sums"].loops()]


def test_debugging_information_changes_no_instruction(tmp_path: Path) -> None:
    build("ds_cnn", "ternary", tmp_path)
    folder = tmp_path / "kept" / "source"
    for name, more in (("plain.o", []), ("lines.o", ["-g"])):
        subprocess.run([f"{PREFIX}gcc", *FLAGS, *more, "-c", "kernels.c", "-o", name], cwd=folder, check=True)
        subprocess.run([f"{PREFIX}strip", "--strip-debug", name], cwd=folder, check=True)
    assert _instructions(folder / "plain.o") == _instructions(folder / "lines.o")


def _instructions(file: Path) -> list[str]:
    command = [f"{PREFIX}objdump", "-d", "--no-show-raw-insn", str(file)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [line.split("\t", 1)[1].split("<")[0] for line in listed.splitlines() if ":\t" in line]
    assert found
    return found


def test_a_multiplication_stops_the_program(tmp_path: Path) -> None:
    """The same program, compiled for a CPU that multiplies, meets an illegal instruction here."""
    build("mlp", "int8", tmp_path)
    folder = tmp_path / "kept" / "source"
    assert emulate_board(folder, "rv32i")[0] == 0
    makefile = (folder / "Makefile").read_text()
    assert "-march=rv32i " in makefile
    (folder / "Makefile").write_text(makefile.replace("-march=rv32i ", "-march=rv32im "))
    (folder / "example.elf").unlink()
    status, lines = emulate_board(folder, "rv32i")
    assert status == 1
    assert lines == ["error: illegal instruction"]
    able = [word.replace("m=false", "m=true") for word in TARGET.board.command("example.elf")]
    done = subprocess.run(able, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0
    assert "golden ok" in done.stdout.splitlines()


def test_the_instruction_count_is_the_same_in_every_run(tmp_path: Path) -> None:
    build("mlp", "ternary", tmp_path)
    assert emulate_board(tmp_path / "kept" / "source", "rv32i") == emulate_board(tmp_path / "kept" / "source", "rv32i")


# zig has functions for floats and integers that the CPU cannot compute, and memcpy, but no headers of a C library.
HEADERS = {
    "math.h": """#define INFINITY __builtin_inff()
#define HUGE_VAL __builtin_huge_val()
#define fabsf __builtin_fabsf
#define fabs __builtin_fabs
#define copysignf __builtin_copysignf
""",
    "string.h": """#include <stddef.h>
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *text);
""",
}


@pytest.mark.parametrize("scheme", WITHOUT_MULTIPLICATION)
def test_zig_alone_builds_it_too(scheme: str, tmp_path: Path) -> None:
    """Another compiler, without a C library: the same golden bits, and no multiplication."""
    zig = zig_command()
    assert zig is not None, "pip install ziglang"
    build("ds_cnn", scheme, tmp_path)
    folder = tmp_path / "kept" / "source"
    for name, text in HEADERS.items():
        (folder / name).write_text(text)
    flags = ["-target", "riscv32-freestanding-none", *TARGET.architecture.c_flags(TARGET, "zig"), "-I.", *C_FLAGS]
    files = [*MODEL_FILES, *EXAMPLE_FILES, "startup.c"]
    command = [*zig, "cc", *flags, "-DSUBBYTE_BOARD", "-Wl,--gc-sections", "-T", "link.ld", "-o", "example.elf", *files]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    command = TARGET.board.command("example.elf")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0
    assert "golden ok" in done.stdout.splitlines()
