"""C sources of models with state: a thousand steps give torch's bits, compiled for this machine and on every board.

The expected outputs and states are torch's: no engine of ours or another's takes part in them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulators import emulate_board
from recurrent import keyword_spotter, recurrent_step, torch_steps
from unpacked import unpacked

import subbyte
from subbyte.dialect.graph import view
from subbyte.dialect.state import states
from subbyte.export.onnx_file import load_onnx
from subbyte.export.stored_states import in_file
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines import all_targets, get_target
from subbyte.tvm_kernels.states import with_states

STEPS = 1000


def sources(model: str, scheme: str, folder: Path, target: str = "cortex-m4") -> tuple[Path, int]:
    """C sources whose example runs and compares the steps, and how many elements those are."""
    step, shape = (recurrent_step(scheme), (8,)) if model == "gru" else (keyword_spotter(scheme), (10, 1))
    subbyte.export(step, folder / "m.onnx", example=torch.zeros(1, *shape))
    machine = get_target(target)
    with code_generator(machine.emitter.code_generator, machine.multiplies):
        plan = assemble(lower_graph(with_states(folder / "m.onnx"), machine.features, strict=True), machine.features)
    xs = np.random.default_rng(0).random((STEPS, 1, *shape), np.float32)
    expected = torch_steps(step, xs)
    graph = view(load_onnx(folder / "m.onnx"))
    last = tuple(in_file(graph, state, expected[state.input][-1]) for state in states(graph.model))
    golden = Golden((xs,), (expected["output"],), states=last)
    assert golden.runs == STEPS
    unpacked(compile_plan(plan, machine, golden).members, folder)
    return folder / "source", expected["output"].size + sum(value.size for value in last)


@pytest.mark.parametrize("scheme", ["int8", "ternary", "pow2"])
@pytest.mark.parametrize("model", ["gru", "convolution"])
def test_sources_on_this_machine_give_torchs_bits(model: str, scheme: str, tmp_path: Path) -> None:
    folder, elements = sources(model, scheme, tmp_path)
    files = sorted(file.name for file in folder.glob("*.c") if file.name != "startup.c")
    command = ["gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", *files, "-o", "example", "-lm"]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    ran = subprocess.run(["./example"], cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    equal(ran.stdout.splitlines(), model)
    print(f"{model} {scheme}, gcc: {STEPS:,} steps, {elements:,} elements equal")


@pytest.mark.device
@pytest.mark.parametrize("target", [target.name for target in all_targets() if target.board is not None])
@pytest.mark.parametrize(("model", "scheme"), [("gru", "ternary"), ("gru", "int8"), ("convolution", "int8")])
def test_sources_on_a_board_give_torchs_bits(model: str, scheme: str, target: str, tmp_path: Path) -> None:
    folder, elements = sources(model, scheme, tmp_path, target)
    status, lines = emulate_board(folder, target)
    assert status == 0, lines
    equal(lines, model)
    print(f"{model} {scheme}, {target}: {STEPS:,} steps, {elements:,} elements equal")


def equal(lines: list[str], model: str) -> None:
    """Whether the example compared the outputs of every step and the states after the last, and found them equal."""
    compared = ["output 0", "state 0", *(["state 1"] if model == "convolution" else [])]
    assert [line for line in lines if " differing " in line] == [f"{name} differing 0" for name in compared]
    assert lines[-1] == "golden ok"
