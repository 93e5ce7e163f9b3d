"""State in C sources: a thousand runs give what the reference gave, on this machine and on every board."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import pytest
from emulators import emulate_board
from state_models import integer_cell

import subbyte
from subbyte.tvm_kernels import golden
from subbyte.tvm_kernels.emit.source_files import EXAMPLE_FILES, MODEL_FILES, STATE_FILE
from subbyte.tvm_kernels.machines import all_targets

RUNS = 1000
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes", "-Wcast-align"]
FILES = [name for name in (*MODEL_FILES, STATE_FILE, *EXAMPLE_FILES) if name != "startup.c"]


def compiled(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cell, begun with sevens, with a golden run of a thousand."""
    monkeypatch.setattr(golden, "RUNS", RUNS)
    model = integer_cell()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 16), 7, np.uint8), "h"))
    report = subbyte.compile(model, folder / "m.subbyte", target=target, state=["h=h_next"], keep=folder)
    assert report.state_bytes == 68
    outputs = np.load(folder / "golden" / "output_0.npy")
    assert outputs.shape == (RUNS, 1, 16)
    assert len({row.tobytes() for row in outputs}) > 900
    return folder / "source"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of a microcontroller, to be compiled here."""
    return compiled("cortex-m4", tmp_path, monkeypatch)


def built_and_run(folder: Path, *options: str) -> list[str]:
    command = ["gcc", "-std=c99", "-O2", *options, *WARNINGS, *FILES, "-o", "example", "-lm"]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    return subprocess.run(["./example"], cwd=folder, capture_output=True, text=True, check=False).stdout.splitlines()


@pytest.mark.parametrize("options", [(), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")])
def test_a_thousand_runs_are_bit_equal(options: tuple[str, ...], sources: Path) -> None:
    lines = built_and_run(sources, *options)
    assert lines[-3:] == ["output 0 differing 0", "state 0 differing 0", "golden ok"], lines


def test_a_next_value_that_is_lost_is_found(sources: Path) -> None:
    core = sources / STATE_FILE
    text = core.read_text()
    core.write_text(text.replace("status == SUBBYTE_OK && i <", "status != SUBBYTE_OK && i <"))
    assert core.read_text() != text
    lines = built_and_run(sources)
    assert lines[-1] == "golden DIFFERENT"
    assert "output 0 differing 0" not in lines
    assert "state 0 differing 0" not in lines


def test_a_model_that_is_not_reset_says_so(sources: Path) -> None:
    example = sources / "example.c"
    text = example.read_text()
    example.write_text(text.replace("return subbyte_reset(subbyte_get_cell_model(), buffers);", "return SUBBYTE_OK;"))
    assert example.read_text() != text
    assert built_and_run(sources) == ["error: the state was not reset"]


@pytest.mark.device
@pytest.mark.parametrize("target", [target.name for target in all_targets() if target.board is not None])
def test_every_board_gives_the_same_bits_a_thousand_times(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, lines = emulate_board(compiled(target, tmp_path, monkeypatch), target)
    assert status == 0, lines
    assert lines[-3:] == ["output 0 differing 0", "state 0 differing 0", "golden ok"]


def test_a_model_without_state_brings_no_code_for_it(tmp_path: Path) -> None:
    model = integer_cell()  # h is an input like any other
    subbyte.compile(model, tmp_path / "m.subbyte", target="cortex-m4", keep=tmp_path)
    assert not (tmp_path / "source" / STATE_FILE).exists()
    assert "state" not in (tmp_path / "source" / "model.c").read_text()
