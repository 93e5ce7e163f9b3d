"""cortex-m4: the generated C runs on an emulated MPS2 board, gives the golden bits, and counts its instructions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from emulators import emulate_board
from low_bit_models import small_model

from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.machines import get_target

pytestmark = pytest.mark.device

BOARD = get_target("cortex-m4").board


def build(name: str, scheme: str, folder: Path) -> CompileReport:
    return compile(
        small_model(name, scheme), folder / "model.subbyte", target="cortex-m4", strict=True, keep=folder / "kept"
    )


def run(folder: Path) -> tuple[int, list[str]]:
    """Exit status and lines of the example on the board."""
    return emulate_board(folder / "kept" / "source", "cortex-m4")


@pytest.mark.parametrize("scheme", ["int8", "binary"])
def test_the_board_counts_its_instructions(scheme: str, tmp_path: Path) -> None:
    report = build("ds_cnn", scheme, tmp_path)
    assert report.flash_bytes is not None
    assert report.flash_bytes > report.weights_bytes
    status, lines = run(tmp_path)
    assert status == 0, lines
    assert "output 0 differing 0" in lines
    assert "golden ok" in lines
    ticks = next(int(line.split()[1]) for line in lines if line.startswith("ticks"))
    assert ticks * BOARD.instructions_per_tick > report.macs / 32  # 32 bits to a word: no kernel is faster than that


def test_the_instruction_count_is_the_same_in_every_run(tmp_path: Path) -> None:
    build("mlp", "ternary", tmp_path)
    assert run(tmp_path) == run(tmp_path)


def test_a_wrong_golden_bit_is_found_on_the_board(tmp_path: Path) -> None:
    build("mlp", "ternary", tmp_path)
    golden = tmp_path / "kept" / "source" / "golden.c"
    head, output = golden.read_text().split("output_0[")
    first = output.split("{", 1)[1].split("u,", 1)[0].strip()
    golden.write_text(head + "output_0[" + output.replace(first, f"0x{int(first, 16) ^ 0x40000000:x}", 1))
    status, lines = run(tmp_path)
    assert status == 1
    assert "output 0 differing 1" in lines
    assert "golden DIFFERENT" in lines


def test_the_model_needs_no_heap_and_no_thread(tmp_path: Path) -> None:
    build("ds_cnn", "binary", tmp_path)
    folder = tmp_path / "kept" / "source"
    compiler = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-O2", "-ffp-contract=off"]
    files = ["kernels.c", "model.c", "weights.c", "run.c", "needs.c"]
    subprocess.run([*compiler, "-r", "-o", "model.o", "-nostdlib", *files], cwd=folder, check=True, timeout=600)
    listed = subprocess.run(
        ["arm-none-eabi-nm", "-u", "model.o"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    undefined = {line.split()[-1] for line in listed.splitlines()}
    allowed = {"memset", "memcpy"}
    assert {name for name in undefined if not name.startswith("__aeabi_")} <= allowed
