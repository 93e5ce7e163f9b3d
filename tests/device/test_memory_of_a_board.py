"""What `compile` says of memory is what a board's linker says: what fits links and runs, one byte less does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from emulators import emulate_board
from low_bit_models import small_model
from state_models import integer_cell

from subbyte.errors import CompileError
from subbyte.tvm_kernels.compiler import CompileReport, compile
from subbyte.tvm_kernels.machines import Target, get_target
from subbyte.tvm_kernels.machines.board import Memory

pytestmark = pytest.mark.device

MODELS = {"ds_cnn": (lambda: small_model("ds_cnn", "ternary"), []), "cell": (integer_cell, ["h=h_next"])}


def with_memory(name: str, flash: int, ram: int) -> Target:
    target = get_target(name)
    board = target.board
    assert board is not None
    sizes = {"flash": Memory(board.flash.origin, flash), "ram": Memory(board.ram.origin, ram)}
    return replace(target, run_by=replace(board, **sizes))


def link_with(source: Path, was: dict[str, int], now: dict[str, int]) -> subprocess.CompletedProcess[str]:
    """Builds the example for a board with other bytes of memory by region."""
    script = source / "memory.ld"
    text = script.read_text()
    for region, nbytes in was.items():
        text, changed = re.subn(rf"({region} .*LENGTH = ){nbytes}\n", rf"\g<1>{now[region]}\n", text)
        assert changed == 1
    script.write_text(text)
    return subprocess.run(["make"], cwd=source, capture_output=True, text=True, timeout=600, check=False)


def compiled(model: onnx.ModelProto, state: list[str], target: str | Target, folder: Path) -> CompileReport:
    return compile(model, folder / "m.subbyte", target=target, state=state, keep=folder)


@pytest.mark.parametrize(("target", "name"), [("cortex-m4", "ds_cnn"), ("rv32i", "cell")])
def test_the_report_the_refusal_and_the_linker_agree_to_the_byte(target: str, name: str, tmp_path: Path) -> None:
    compiler = get_target(target).compiler
    assert compiler is not None
    assert shutil.which(compiler.command), compiler.remedy
    make, state = MODELS[name]
    model = make()
    on_the_board = compiled(model, state, target, tmp_path)
    assert not [note for note in on_the_board.notes if "example" in note]
    need, flash = on_the_board.ram, on_the_board.flash_bytes
    ram = sum(need.values())
    assert need["variables"] > 0
    assert need["stack"] == get_target(target).board.stack

    lacks = (
        rf"flash: {flash:,} bytes needed, {flash - 1:,} there, 1 missing\. .* RAM: {ram:,} .* 1 missing: .*variables"
    )
    with pytest.raises(CompileError, match=lacks):
        compiled(model, state, with_memory(target, flash - 1, ram - 1), tmp_path)

    report = compiled(model, state, with_memory(target, flash, ram), tmp_path)
    assert report.ram_bytes == report.to_json()["ram_bytes"] == ram
    said = re.search(r"the example, .* does not fit .* flash: ([\d,]+) bytes needed", "\n".join(report.notes))
    assert said, report.notes
    example = int(said[1].replace(",", ""))
    assert example > flash
    source, fits = tmp_path / "source", {"FLASH": example, "RAM": ram}
    assert link_with(source, {"FLASH": flash, "RAM": ram}, fits).returncode == 0
    status, lines = emulate_board(source, target)
    assert (status, lines[-1]) == (0, "golden ok")
    (source / "example.elf").unlink()
    failed = link_with(source, fits, {"FLASH": example - 1, "RAM": ram - 1})
    assert failed.returncode != 0
    for region in fits:
        assert f"region `{region}' overflowed by 1 byte" in failed.stderr
