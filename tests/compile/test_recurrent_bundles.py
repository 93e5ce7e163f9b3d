"""Exported models with state in bundles of this machine: bit-equal to torch for a thousand steps, and after a reset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recurrent import keyword_spotter, recurrent_step, torch_steps
from torch import nn

import subbyte
from subbyte.dialect.graph import view
from subbyte.dialect.state import states
from subbyte.export.onnx_file import load_onnx
from subbyte.export.stored_states import in_file

STEPS = 1000


def compiled(step: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    subbyte.export(step, folder / "m.onnx", example=torch.zeros(1, *shape))
    report = subbyte.compile(folder / "m.onnx", folder / "m.subbyte", target="host", strict=True)
    assert report.not_replayed is None
    return folder / "m.subbyte"


@pytest.mark.parametrize("scheme", ["int8", "ternary", "pow2", "binary"])
@pytest.mark.parametrize("model", ["gru", "convolution"])
def test_a_bundle_is_bit_equal_to_torch_for_a_thousand_steps(model: str, scheme: str, tmp_path: Path) -> None:
    """Outputs, and states after each step."""
    step, shape = (recurrent_step(scheme), (8,)) if model == "gru" else (keyword_spotter(scheme), (10, 1))
    xs = np.random.default_rng(0).uniform(-1, 1, (STEPS, 1, *shape)).astype(np.float32)  # of both signs, for binary
    expected = torch_steps(step, xs)
    path, compared = compiled(step, shape, tmp_path), 0
    graph = view(load_onnx(tmp_path / "m.onnx"))
    stored = {s.input: in_file(graph, s, expected[s.input]) for s in states(graph.model)}
    assert {values.dtype for values in stored.values()} == {np.dtype(np.uint8)}
    with subbyte.load(path, threads=1) as session:
        assert ([info.name for info in session.inputs], list(session.state)) == (["input"], list(stored))
        for steps in (STEPS, 20):  # and again from the initial state
            for at in range(steps):
                got = session.run(xs[at])
                np.testing.assert_array_equal(got, expected["output"][at])
                compared += np.size(got)
                for name, value in session.state.items():
                    np.testing.assert_array_equal(value, stored[name][at])
                    compared += value.size
            session.reset()
    assert len({value.tobytes() for value in expected["output"]}) > STEPS // 2  # it does not settle
    print(f"{model} {scheme}: {STEPS:,} steps, {compared:,} elements equal")


def test_a_state_that_is_read_and_written_back_goes_on(tmp_path: Path) -> None:
    """Two sequences in turn through one session, each with its own state kept by the caller."""
    step = recurrent_step("ternary")
    xs = np.random.default_rng(1).random((2, 50, 1, 8), np.float32)
    expected = [torch_steps(step, part) for part in xs]
    with subbyte.load(compiled(step, (8,), tmp_path), threads=1) as session:
        kept = [session.state["cell.h"]] * 2
        for at in range(50):
            for sequence in (0, 1):
                session.state["cell.h"] = kept[sequence]
                np.testing.assert_array_equal(session.run(xs[sequence, at]), expected[sequence]["output"][at])
                kept[sequence] = session.state["cell.h"]
