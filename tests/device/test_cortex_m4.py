"""cortex-m4: the generated C runs on an emulated MPS2 board, gives the golden bits, and counts its instructions."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
from emulators import emulate_board
from low_bit_models import small_model

from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.emit.source_files import C_FLAGS, MODEL_FILES, TEXT_FILE
from subbyte.tvm_kernels.machines import get_target

pytestmark = pytest.mark.device

BOARD = get_target("cortex-m4").board


Build = Callable[[str, str], tuple[CompileReport, Path]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a network in a scheme, each once: the report and the folder of its sources."""

    @cache
    def built(name: str, scheme: str) -> tuple[CompileReport, Path]:
        folder = tmp_path_factory.mktemp(name)
        model, bundle = small_model(name, scheme), folder / "model.subbyte"
        return compile(model, bundle, target="cortex-m4", strict=True, keep=folder), folder / "source"

    return built


# ds_cnn, by gcc 12.2: bytes of flash and instructions of an inference. Another gcc may need a little more.
FIGURES = {"int8": (31_447, 489_360), "ternary": (17_775, 488_200), "binary": (12_407, 185_040)}
MARGIN = 1.01


@pytest.mark.parametrize("scheme", FIGURES)
def test_flash_and_instructions_do_not_grow(scheme: str, build: Build) -> None:
    report, source = build("ds_cnn", scheme)
    flash, instructions = FIGURES[scheme]
    assert report.flash_bytes is not None
    assert report.weights_bytes < report.flash_bytes <= flash * MARGIN
    status, lines = emulate_board(source, "cortex-m4")
    assert status == 0, lines
    assert "output 0 differing 0" in lines
    assert "golden ok" in lines
    ticks = next(int(line.split()[1]) for line in lines if line.startswith("ticks"))
    counted = ticks * BOARD.instructions_per_tick
    assert report.macs / 32 < counted <= instructions * MARGIN  # 32 bits to a word: no kernel is faster than that


def test_the_instruction_count_is_the_same_in_every_run(build: Build) -> None:
    _, source = build("mlp", "ternary")
    assert emulate_board(source, "cortex-m4") == emulate_board(source, "cortex-m4")


def test_a_wrong_golden_bit_is_found_on_the_board(build: Build, tmp_path: Path) -> None:
    source = copytree(build("mlp", "ternary")[1], tmp_path / "source")
    golden = source / "golden.c"
    head, output = golden.read_text().split("output_0[")
    first = output.split("{", 1)[1].split("u,", 1)[0].strip()
    golden.write_text(head + "output_0[" + output.replace(first, f"0x{int(first, 16) ^ 0x40000000:x}", 1))
    status, lines = emulate_board(source, "cortex-m4")
    assert status == 1
    assert "output 0 differing 1" in lines
    assert "golden DIFFERENT" in lines


def kept(folder: Path, *more: str) -> tuple[set[str], int]:
    """What a linker that drops unused sections keeps for a program that runs the model, and calls `more`.

    Undefined symbols, and bytes of code and constants.
    """
    names = re.findall(r"\b(subbyte_get_\w+_model|subbyte_\w+_weights)\b", (folder / "model.h").read_text())
    roots = ["subbyte_run", *names, *more]
    compiler = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", *C_FLAGS, "-nostdlib"]
    link = ["-r", "-Wl,--gc-sections", *(f"-Wl,-u,{root}" for root in roots), "-o", "model.o"]
    subprocess.run([*compiler, *link, *MODEL_FILES, TEXT_FILE], cwd=folder, check=True, timeout=600)

    def said(tool: str, *options: str) -> list[str]:
        command = [f"arm-none-eabi-{tool}", *options, "model.o"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()

    undefined = {line.split()[-1] for line in said("nm", "-u")}
    return undefined, sum(int(size) for size in said("size")[1].split()[:2])


def test_the_model_needs_no_heap_no_thread_and_no_texts(build: Build) -> None:
    report, folder = build("ds_cnn", "binary")
    undefined, nbytes = kept(folder)
    assert undefined <= {"memset", "memcpy"}
    assert report.flash_bytes is not None
    assert report.flash_bytes - 128 < nbytes <= report.flash_bytes  # with subbyte_missing_features
    with_texts, more = kept(folder, "subbyte_failure_text")
    assert with_texts == undefined  # no division of 64 bits
    assert nbytes + 512 < more < nbytes + 1024
