"""What runs a target's program is asked for its CPUs before it is used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from emulators import on_linux

from subbyte.errors import UnknownNameError
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
