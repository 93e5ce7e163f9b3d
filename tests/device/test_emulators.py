"""What runs a target's program: it is asked for its CPUs, and the program says that its times are an emulator's."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from emulators import member_of, on_linux
from low_bit_models import small_model
from this_machine import needs_x86_64

from subbyte.errors import UnknownNameError
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.machines import get_target
from subbyte.tvm_kernels.machines.running import QemuUser


@pytest.mark.device
@pytest.mark.parametrize(
    ("name", "cpu"), [("cortex-a53", "cortex-a53x"), ("riscv64-linux", "rv64x"), ("x86-64-v3", "Haswel")]
)
def test_a_cpu_that_the_emulator_does_not_have_is_refused(name: str, cpu: str, tmp_path: Path) -> None:
    target = dataclasses.replace(get_target(name), run_by=QemuUser(cpu))
    with pytest.raises(UnknownNameError, match=f"unknown CPU of qemu-.* '{cpu}'"):
        on_linux(target, {"bench": b""}, [], tmp_path)


@pytest.mark.device
@needs_x86_64  # what is emulated here depends on the machine
@pytest.mark.parametrize(
    ("name", "emulated"), [("cortex-a53", True), ("riscv64-linux", True), ("x86-64-v2", True), ("host", False)]
)
def test_the_bench_program_says_that_it_is_emulated(name: str, emulated: bool, tmp_path: Path) -> None:
    target = get_target(name)
    compile(small_model("ds_cnn", "ternary"), tmp_path / "model.subbyte", target=target)
    program = member_of(tmp_path / "model.subbyte", "bench")
    options = ["--iterations", "3", "--warmup", "0", "--json"]
    command = [*target.command(str(program)), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    said = "this program runs under an emulator: its times are not those of the machine"
    assert (said in found["warnings"]) == emulated
    assert set(found["machine"]["features"]) >= target.features  # of the CPU itself, emulated or not
    for key in ("cpu", "mhz"):
        assert (found["machine"][key] is None) == emulated, key
    assert found["machine"]["architecture"] == target.architecture.machine
