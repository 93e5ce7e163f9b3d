"""What `compile` says of RAM is what a board's linker says: what fits links and runs, one byte less is refused."""

from __future__ import annotations

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


def with_ram(name: str, nbytes: int) -> Target:
    target = get_target(name)
    assert target.board is not None
    return replace(target, run_by=replace(target.board, ram=Memory(target.board.ram.origin, nbytes)))


def compiled(model: onnx.ModelProto, state: list[str], target: str | Target, folder: Path) -> CompileReport:
    return compile(model, folder / "m.subbyte", target=target, state=state, keep=folder)


@pytest.mark.parametrize(("target", "name"), [("cortex-m4", "ds_cnn"), ("cortex-m4", "cell"), ("rv32i", "ds_cnn")])
def test_the_report_the_refusal_and_the_linker_agree_to_the_byte(target: str, name: str, tmp_path: Path) -> None:
    compiler = get_target(target).compiler
    assert compiler is not None
    assert shutil.which(compiler.command), compiler.remedy
    make, state = MODELS[name]
    model = make()
    need = compiled(model, state, target, tmp_path).ram
    ram = sum(need.values())
    assert need["variables"] > 0
    assert need["stack"] == get_target(target).board.stack

    report = compiled(model, state, with_ram(target, ram), tmp_path)
    assert report.ram_bytes == report.to_json()["ram_bytes"] == ram
    status, lines = emulate_board(tmp_path / "source", target)
    assert (status, lines[-1]) == (0, "golden ok")

    with pytest.raises(CompileError, match=rf"RAM: {ram:,} bytes needed, {ram - 1:,} there, 1 missing: .*variables"):
        compiled(model, state, with_ram(target, ram - 1), tmp_path)
    script = tmp_path / "source" / "memory.ld"
    script.write_text(script.read_text().replace(f"LENGTH = {ram}\n", f"LENGTH = {ram - 1}\n"))
    (tmp_path / "source" / "example.elf").unlink()
    done = subprocess.run(["make"], cwd=tmp_path / "source", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode != 0
    assert "region `RAM' overflowed by 1 byte" in done.stderr
