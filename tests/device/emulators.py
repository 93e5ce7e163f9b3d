"""Run what was compiled by what its target says: qemu-user for Linux, an emulated board for C sources."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from this_cpu import skip_unless_it_has
from unpacked import unpacked

from subbyte.errors import UnknownNameError
from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels.machines import Target, all_targets, get_target
from subbyte.tvm_kernels.machines.running import QemuUser


def member_of(bundle: Path, name: str) -> Path:
    """That member of the bundle, which is unpacked beside it: the bench program reads the others."""
    with open_bundle(bundle) as opened:
        unpacked({member: opened.read(member) for member in opened.members}, bundle.parent)
    return bundle.with_name(name)


def emulate_linux(machine: str, program: Path, *options: str, cpu: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a Linux program of another machine, on that CPU or the emulator's usual one."""
    emulator = f"qemu-{machine}"
    assert shutil.which(emulator), "apt install qemu-user"
    command = [emulator, *(("-cpu", cpu) if cpu else ()), str(program), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def emulate_board(folder: Path, target: str) -> tuple[int, list[str]]:
    """Builds the example and runs it on the target's board; its exit status and lines."""
    machine = get_target(target)
    assert machine.board is not None
    assert machine.compiler is not None
    assert shutil.which(machine.compiler.command), machine.compiler.remedy
    subprocess.run(["make", "-s"], cwd=folder, check=True, timeout=600)
    done = subprocess.run(
        _command(machine, "example.elf"), cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()  # semihosting writes to stderr


def _command(target: Target, program: str) -> list[str]:
    if target.emulator is not None:
        assert shutil.which(target.emulator.command), target.emulator.remedy
    if isinstance(target.run_by, QemuUser) and target.emulator is not None:
        _check_cpu(target.emulator.command, target.run_by.cpu)
    return target.command(program)


def _check_cpu(emulator: str, cpu: str) -> None:
    """Raises UnknownNameError for a CPU that the emulator does not list; after a comma come properties: rv64,v=true."""
    listed = subprocess.run([emulator, "-cpu", "help"], capture_output=True, text=True, timeout=60, check=False).stdout
    known = {word for line in listed.splitlines() for word in line.split()[:2] if not word.endswith(":")}
    if cpu.split(",")[0] not in known:
        raise UnknownNameError(f"CPU of {emulator}", cpu, known)


Outcome = tuple[bool, list[int]]  # whether all outputs are as golden says, and how many elements of each differ


def on_linux(
    target: Target, members: Mapping[str, bytes], golden: Sequence[npt.NDArray[np.generic]], folder: Path
) -> Outcome:
    """Runs the bench program of a Linux target; the test is skipped where only a CPU with its features would do."""
    if target.emulator is None:
        skip_unless_it_has(target.features)
    program = unpacked(members, folder)
    options = ["--iterations", "1", "--warmup", "0", "--threads", "2", "--json", "--dump", str(folder)]
    command = [*_command(target, str(program)), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: not as golden says
    differing = []
    for index, want in enumerate(golden):
        got = np.fromfile(folder / f"output_{index}.bin", np.uint8).reshape(want.size, want.itemsize)
        expected = np.frombuffer(want.tobytes(), np.uint8).reshape(want.size, want.itemsize)
        differing.append(int((got != expected).any(axis=1).sum()))
    return bool(json.loads(done.stdout)["golden_ok"]) and done.returncode == 0, differing


def on_board(
    target: Target, members: Mapping[str, bytes], golden: Sequence[npt.NDArray[np.generic]], folder: Path
) -> Outcome:
    """Runs the example of C sources on the target's board, which compares with its golden outputs itself."""
    unpacked(members, folder)
    status, lines = emulate_board(folder / "source", target.name)
    words = [line.split() for line in lines]
    found = {int(w[1]): int(w[3]) for w in words if len(w) == 4 and w[0] == "output" and w[2] == "differing"}
    assert sorted(found) == list(range(len(golden))), lines
    return status == 0 and "golden ok" in lines, [found[index] for index in range(len(golden))]


# target -> what runs its bundles: what the target says; `host` has its tests elsewhere
RUN: dict[str, Callable[..., Outcome]] = {
    target.name: partial(on_board if target.board else on_linux, target)
    for target in all_targets()
    if target.name != "host"
}
