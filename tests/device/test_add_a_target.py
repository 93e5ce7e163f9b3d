"""docs/add-a-target.md: its target compiles a model, and its commands run the bundle under the emulators it names."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from low_bit_models import small_model
from pages import commands, python_blocks, run, shell, text_of

from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels.machines import architecture

PAGE = "docs/add-a-target.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t.onnx").write_bytes(small_model("ds_cnn", "ternary").SerializeToString())
    return tmp_path


def test_the_target_of_the_page_compiles_a_model(folder: Path) -> None:
    program, _ = python_blocks(PAGE)
    run(program, folder)
    with open_bundle(folder / "t.subbyte") as bundle:
        target = bundle.manifest.target
        assert (target.name, target.triple, set(target.features)) == ("cortex-a72", "aarch64-linux-gnu", {"neon"})
        assert bundle.read("bench")[18:20] == b"\xb7\x00"  # EM_AARCH64


def test_the_board_of_the_page_has_the_memory_it_says(folder: Path) -> None:
    run(python_blocks(PAGE)[1], folder)
    with open_bundle(folder / "small.subbyte") as bundle:
        assert bundle.manifest.target.name == "small-m4"
        memory = bundle.read("source/memory.ld").decode()
    assert "FLASH (rwx) : ORIGIN = 0x00000000, LENGTH = 524288\n" in memory
    assert "RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 131072\n" in memory


def test_the_page_names_every_architecture() -> None:
    found = re.findall(r"`(\w+)\.([A-Z0-9_]+)`", text_of(PAGE))
    named = {getattr(import_module(f"subbyte.tvm_kernels.machines.{module}"), name).machine for module, name in found}
    assert named == set(architecture._rows)


@pytest.mark.device
def test_its_program_runs_under_the_emulator(folder: Path) -> None:
    run(python_blocks(PAGE)[0], folder)
    found = json.loads(shell(commands(PAGE, "unzip -oq t.subbyte -d t"), folder))
    assert found["golden_ok"]
    assert found["machine"]["architecture"] == "aarch64"


@pytest.mark.device
def test_c_sources_run_on_the_emulated_board(folder: Path) -> None:
    lines = shell(f"exec 2>&1\n{commands(PAGE, 'subbyte compile t.onnx --target cortex-m4')}", folder).splitlines()
    assert "golden ok" in lines
    assert any(line.split()[:3] == ["text", "data", "bss"] for line in lines)
