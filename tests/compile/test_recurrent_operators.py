"""GRU, LSTM and RNN of ONNX: computed step by step as onnxruntime does, with the state of a stream, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hand_graphs import Builder
from run_plan import onnxruntime_outputs, random_inputs, run_plan
from state_models import parsed, sequence

import subbyte
from subbyte.errors import CompileError
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines.host import host_features

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def recurrent(
    op: str,
    steps: int = 2,
    batch: int = 2,
    given: Sequence[str] = (),
    outputs: Sequence[int] = (0, 1),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node [steps, batch, 5] with 6 hidden values; `given` are the optional inputs that it has."""
    b = Builder()
    x, hidden = b.input(steps, batch, 5), 6
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = GATES[op] * hidden
    shapes = {
        "B": (directions, 2 * rows),
        "sequence_lens": (batch,),
        "initial_h": (directions, batch, hidden),
        "initial_c": (directions, batch, hidden),
        "P": (directions, 3 * hidden),
    }
    optional = [b.uniform(*shape, low=-0.5, high=0.5) if name in given else "" for name, shape in shapes.items()]
    if "sequence_lens" in given:
        optional[1] = b.constant([steps, *range(1, batch)], np.int32)
    while optional and not optional[-1]:
        optional.pop()
    weights = [b.uniform(directions, rows, size, low=-0.5, high=0.5) for size in (5, hidden)]
    made = b.node(op, x, *weights, *optional, outputs=3 if op == "LSTM" else 2, hidden_size=hidden, **attributes)
    return b.model(*(made[index] for index in outputs))


ALL = ("B", "initial_h")
CASES: dict[str, dict[str, Any]] = {
    "GRU, reverse, without optional inputs": {"op": "GRU", "direction": "reverse"},
    "GRU, both directions, reset after the product": {
        "op": "GRU", "given": ALL, "direction": "bidirectional", "linear_before_reset": 1
    },
    "GRU, one step": {"op": "GRU", "given": ALL, "steps": 1, "batch": 1, "outputs": [1]},
    "LSTM, both directions, peepholes": {
        "op": "LSTM", "given": (*ALL, "initial_c", "P"), "direction": "bidirectional", "outputs": (2, 0, 1)
    },
    "GRU, sequences of two lengths, both directions": {
        "op": "GRU", "given": (*ALL, "sequence_lens"), "direction": "bidirectional"
    },
    "LSTM, other activations": {"op": "LSTM", "steps": 1, "activations": ["Sigmoid", "Relu", "Softsign"]},
    "RNN, more steps than a Concat has inputs": {"op": "RNN", "given": ALL, "steps": 17},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_as_in_onnxruntime(case: str) -> None:
    model = recurrent(**CASES[case])
    inputs = random_inputs(model)
    outputs, _ = run_plan(lower(model, host_features()), inputs)
    wanted = onnxruntime_outputs(model, inputs)
    assert set(outputs) == set(wanted)
    for name, values in wanted.items():
        assert outputs[name].shape == values.shape
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"op": "GRU", "clip": 3.0}, r"its attribute clip is 3.0; handled: its default"),
        ({"op": "GRU", "layout": 1}, r"its attribute layout is 1; handled: its default"),
        ({"op": "LSTM", "input_forget": 1}, r"its attribute input_forget is 1; handled: its default"),
        ({"op": "RNN", "activations": ["Elu"]}, r"its activations are Elu; handled: 1 of Relu, Sigmoid, .*, Tanh"),
        ({"op": "RNN", "steps": 20_000}, r"it has 20000 steps; export a model of one step with a state \(docs/state"),
    ],
)
def test_other_variants_are_refused_with_what_is_handled(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(CompileError, match=rf"\({options['op']}\): .*{reason}"):
        lower(recurrent(**options), host_features())


def test_a_step_of_an_lstm_keeps_both_of_its_values_between_runs(tmp_path: Path) -> None:
    """As torch exports nn.LSTM with its values passed in and out."""
    rng = np.random.default_rng(0)
    model = parsed(
        """lstm (float[1, 1, 8] x, float[1, 1, 16] h, float[1, 1, 16] c)
            => (float[1, 1, 1, 16] y, float[1, 1, 16] h_next, float[1, 1, 16] c_next) {
          [cell] y, h_next, c_next = LSTM <hidden_size = 16> (x, w, r, b, , h, c)
        }""",
        w=rng.uniform(-0.5, 0.5, (1, 64, 8)).astype(np.float32),
        r=rng.uniform(-0.5, 0.5, (1, 64, 16)).astype(np.float32),
        b=rng.uniform(-0.1, 0.1, (1, 128)).astype(np.float32),
    )
    compile(model, tmp_path / "m.subbyte", state=["h=h_next", "c=c_next"])
    inputs = [{"x": rng.standard_normal((1, 1, 8)).astype(np.float32)} for _ in range(200)]
    zeros = np.zeros((1, 1, 16), np.float32)
    wanted = sequence(model, {"h": "h_next", "c": "c_next"}, {"h": zeros, "c": zeros}, inputs)
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        for feeds, made in zip(inputs, wanted, strict=True):
            np.testing.assert_allclose(session.run(feeds["x"]), made["y"], rtol=1e-4, atol=1e-5)
        for name in "hc":
            np.testing.assert_allclose(session.state[name], wanted[-1][f"{name}_next"], rtol=1e-4, atol=1e-5)
