"""`compile --state` and what `inspect`, `run` and `check` make of states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from state_models import integer_cell

import subbyte
from subbyte.cli import main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    onnx.save(integer_cell(), tmp_path / "cell.onnx")
    return tmp_path / "cell.onnx"


def test_pairs_on_the_command_line_become_the_state_of_the_bundle(cell: Path) -> None:
    made = call("compile", cell, "--state", "h=h_next")
    assert made.exit_code == 0, made.output
    assert "state 68 bytes" in made.output
    bundle = cell.with_suffix(".subbyte")
    assert "h: 0 of 16 elements differ" in call("check", bundle).output
    x = np.arange(8, dtype=np.uint8)[None]
    np.save(cell.with_name("x.npy"), x)
    ran = call("run", bundle, "--input", cell.with_name("x.npy"), "--output", cell.with_name("y.npy"))
    assert ran.exit_code == 0, ran.output
    with subbyte.load(bundle) as session:
        np.testing.assert_array_equal(np.load(cell.with_name("y.npy")), session.run(x))


@pytest.mark.parametrize(
    ("pair", "words"),
    [("h=h_nxt", "Did you mean 'h_next'"), ("h=y", "the input is uint8 [1, 16], the output int32 [1, 16]")],
)
def test_a_wrong_pair_is_a_usage_error_and_writes_nothing(pair: str, words: str, cell: Path) -> None:
    made = call("compile", cell, "--state", pair)
    assert made.exit_code == 2
    assert words in " ".join(made.output.split())
    assert [path.name for path in cell.parent.iterdir()] == ["cell.onnx"]


def test_inspect_lists_the_states_that_a_file_declares(cell: Path) -> None:
    assert json.loads(call("inspect", cell, "--json").output)["states"] == {}
    model = onnx.load(cell)
    onnx.helper.set_model_props(model, {"subbyte.state": "h=h_next"})
    onnx.save(model, cell)
    assert "state: h, in the next run h_next" in call("inspect", cell).output
    assert json.loads(call("inspect", cell, "--json").output)["states"] == {"h": "h_next"}
    onnx.helper.set_model_props(model, {"subbyte.state": "h=gone"})
    onnx.save(model, cell)
    refused = call("inspect", cell)
    assert refused.exit_code == 1
    assert "the graph has no output 'gone'" in " ".join(refused.output.split())
