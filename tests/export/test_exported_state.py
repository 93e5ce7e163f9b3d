"""States in exported files: their pairs, types and initial values, equal to torch step by step, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from recurrent import recurrent_step
from torch import Tensor, nn

from subbyte.dialect.state import State, initial_value, states
from subbyte.errors import ExportError, ExportWarning, UsageError
from subbyte.export import export, run_onnx
from subbyte.export.engine import open_session
from subbyte.models.over_time import OverTime
from subbyte.models.quant.estimators.fixed_step import Codes
from subbyte.models.state import named_states, register_state, reset_states

STEPS = 1000


class Keeps(nn.Module):
    """A module with the state `h` whose forward the tests give: (module, x) -> y."""

    def __init__(self, forward: Any, initial: Tensor | None = None, names: tuple[str, ...] = ("h",)) -> None:
        super().__init__()
        self.run = forward
        if forward in (last_code, swapped):
            self.codes = Codes()
        for name in names:
            register_state(self, name, torch.zeros(1, 2) if initial is None else initial)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def exported(module: nn.Module, folder: Path, shape: tuple[int, ...] = (1, 2), **options: Any) -> onnx.ModelProto:
    report = export(module.eval(), folder / "m.onnx", example=torch.zeros(shape), **options)
    assert report.verification is None or report.verification.exact
    return onnx.load(folder / "m.onnx")


def kinds(model: onnx.ModelProto) -> dict[str, str]:
    return {
        value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in (*model.graph.input, *model.graph.output)
    }


# ---- the same numbers ----


@pytest.mark.parametrize("scheme", ["int8", "ternary", "pow2", "binary"])
def test_a_gru_is_bit_equal_to_torch_for_a_thousand_steps(scheme: str, tmp_path: Path) -> None:
    step = recurrent_step(scheme)
    model = exported(step, tmp_path, (1, 8))
    assert kinds(model) == {"input": "FLOAT", "cell.h": "UINT8", "logits": "FLOAT", "cell.h_next": "UINT8"}
    assert states(model) == (State("cell.h", "cell.h_next"),)
    assert not {"If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}
    session = open_session(model, optimized=False)
    h = initial_value(model, State("cell.h", "cell.h_next"))
    assert h.tolist() == [[128] * 16]
    xs = np.random.default_rng(0).random((STEPS, 1, 8), np.float32)
    reset_states(step)
    compared, values = 0, set()
    for x in xs:
        logits, h = session.run(["logits", "cell.h_next"], {"input": x, "cell.h": h})
        expected = step(torch.from_numpy(x)).detach().numpy()
        codes = named_states(step)["cell.h"].detach().numpy()
        np.testing.assert_array_equal(logits, expected)
        np.testing.assert_array_equal(h.astype(np.float32) - 128, codes)
        compared += logits.size + h.size
        values.update(h.reshape(-1).tolist())
    assert len(values) > 10  # the state moves
    print(f"{scheme}: {STEPS:,} steps, {compared:,} elements equal")


def test_steps_of_several_sequences_begin_from_the_initial_value(tmp_path: Path) -> None:
    """A file of batch 3 on 12 inputs is 4 steps; the values of the state after each step are outputs."""
    model = exported(recurrent_step("int8"), tmp_path, (1, 8), batch=3)
    xs = np.random.default_rng(0).random((12, 8), np.float32)
    whole = run_onnx(model, xs)
    for sequence in range(3):
        alone = exported(recurrent_step("int8"), tmp_path, (1, 8), check=False)
        parts = run_onnx(alone, np.ascontiguousarray(xs[sequence::3]))
        for name, values in parts.items():
            np.testing.assert_array_equal(whole[name][sequence::3], values)


def test_the_sequence_model_has_no_state(tmp_path: Path) -> None:
    model = OverTime(recurrent_step("int8"), axis=1)
    file = exported(model, tmp_path, (1, 8, 8), check=True)
    assert states(file) == ()
    assert list(kinds(file)) == ["input", "logits"]


def test_a_step_of_a_sequence_model_is_the_model_of_one_step(tmp_path: Path) -> None:
    """With the shape of its inputs from those of the whole model, which are compared step by step."""
    step = recurrent_step("int8")
    report = export(OverTime(step, axis=1), tmp_path / "m.onnx", example=torch.zeros(4, 6, 8), step=True)
    assert report.input_shape == (1, 8)
    assert report.verification is not None
    assert report.verification.exact
    alone = exported(step, tmp_path, (1, 8))
    made, wanted = (model.SerializeToString() for model in (onnx.load(tmp_path / "m.onnx"), alone))
    assert made == wanted
    with pytest.raises(UsageError, match="Linear is not a model of one step that runs over a sequence"):
        export(nn.Linear(2, 2), tmp_path / "no.onnx", example=torch.zeros(1, 2), step=True)
    with pytest.raises(UsageError, match=r"has its steps along axis 1, got an input of shape \[1\]"):
        export(OverTime(step, axis=1), tmp_path / "no.onnx", example=torch.zeros(4), step=True)


# ---- types and initial values ----


def average(module: Any, x: Tensor) -> Tensor:
    module.h = module.h * 0.5 + x
    return module.h + 1


def test_a_state_of_real_numbers_is_float32_with_its_initial_value(tmp_path: Path) -> None:
    model = exported(Keeps(average, torch.tensor([[0.5, -2.0]])), tmp_path)
    assert kinds(model)["h"] == kinds(model)["h_next"] == "FLOAT"
    np.testing.assert_array_equal(initial_value(model, State("h", "h_next")), [[0.5, -2.0]])
    np.testing.assert_array_equal(run_onnx(model, np.ones((2, 2), np.float32))["h_next"], [[1.25, 0], [1.625, 1]])


def last_code(module: Any, x: Tensor) -> Tensor:
    """The codes of the call before."""
    before: Tensor = module.h
    module.h = module.codes(x)
    return before * 1


@pytest.mark.parametrize(
    ("signed", "initial", "kind", "stored"),
    [
        (True, 0.0, "UINT8", 128),
        (True, -128.0, "UINT8", 0),
        (False, 0.0, "UINT8", 0),
        (False, 255.0, "UINT8", 255),
        (False, -1.0, "FLOAT", -1),  # no byte holds both -1 and 255
        (True, 0.5, "FLOAT", 0.5),
    ],
)
def test_codes_take_a_byte_each(signed: bool, initial: float, kind: str, stored: float, tmp_path: Path) -> None:
    module = Keeps(last_code, torch.full((1, 2), initial))
    module.codes = Codes(signed=signed)
    model = exported(module, tmp_path)
    assert kinds(model)["h"] == kinds(model)["h_next"] == kind
    np.testing.assert_array_equal(initial_value(model, State("h", "h_next")), np.full((1, 2), stored))
    xs = np.array([[3.4, -200], [300, 7]], np.float32)
    got = run_onnx(model, xs)["logits"]
    np.testing.assert_array_equal(got[0], [initial, initial])
    np.testing.assert_array_equal(got[1], np.clip(np.rint(xs[0]), *((-128, 127) if signed else (0, 255))))


def swapped(module: Any, x: Tensor) -> Tensor:
    """Two states that are given to each other, and a code that goes in."""
    module.a, module.b = module.b, torch.cat([module.a[:, 1:], module.codes(x)[:, :1]], 1)
    y: Tensor = module.a + module.b
    return y


def test_states_that_are_copied_to_each_other_are_bytes_too(tmp_path: Path) -> None:
    model = exported(Keeps(swapped, names=("a", "b")), tmp_path)
    assert states(model) == (State("a", "a_next"), State("b", "b_next"))
    assert [kinds(model)[name] for name in ("a", "b")] == ["UINT8", "UINT8"]


class Twice(nn.Module):
    """A cell that is called twice in a forward, and the same module under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = Keeps(average)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def test_a_module_that_is_called_twice_goes_two_steps_with_one_state(tmp_path: Path) -> None:
    model = exported(Twice(), tmp_path)
    assert states(model) == (State("first.h", "first.h_next"),)
    got = run_onnx(model, np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(got["first.h_next"], [[2.5, 2.5]])  # 1, then 0.5 + (1 + 1)


def assigned_twice(module: Any, x: Tensor) -> Tensor:
    module.h = module.h + x
    middle: Tensor = module.h
    module.h = middle * 2
    return middle


def test_a_state_that_is_assigned_twice_has_the_last_value(tmp_path: Path) -> None:
    model = exported(Keeps(assigned_twice), tmp_path)
    got = run_onnx(model, np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(got["logits"][:, 0], [1, 3, 7])
    np.testing.assert_array_equal(got["h_next"][:, 0], [2, 6, 14])


# ---- what is refused ----


def in_place(module: Any, x: Tensor) -> Any:
    module.h.add_(x)
    return module.h * 1


def augmented(module: Any, x: Tensor) -> Any:
    module.h += x
    return module.h * 1


def grows(module: Any, x: Tensor) -> Any:
    module.h = torch.cat([module.h, x], 1)
    return module.h


def other_type(module: Any, x: Tensor) -> Any:
    module.h = (module.h + x).to(torch.int32)
    return x * 1


def emptied(module: Any, x: Tensor) -> Any:
    module.h = None
    return x * 1


def never_written(module: Any, x: Tensor) -> Any:
    return module.h + x


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (in_place, "state 'h' is written in place"),
        (augmented, "state 'h' is written in place"),
        (grows, r"float32 \[1, 2\] before the forward and torch.float32 \[1, 4\] after it"),
        (other_type, r"torch.int32 \[1, 2\] after it"),
        (emptied, "NoneType after it"),
        (never_written, "state 'h' is read by the forward and never written"),
    ],
)
def test_a_forward_that_treats_its_state_otherwise_is_refused(forward: Any, reason: str, tmp_path: Path) -> None:
    module = Keeps(forward)
    with pytest.raises(ExportError, match=reason):
        exported(module, tmp_path)
    assert not (tmp_path / "m.onnx").exists()
    assert named_states(module)["h"].tolist() == [[0, 0]]  # as before


def test_a_state_that_is_written_before_it_is_read_is_left_out(tmp_path: Path) -> None:
    def forward(module: Any, x: Tensor) -> Tensor:
        module.h = x * 2
        return x + 1

    with pytest.warns(ExportWarning, match="state 'h' is written before it is read: it is not in the file"):
        model = exported(Keeps(forward), tmp_path)
    assert list(kinds(model)) == ["input", "logits"]
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_a_state_named_like_another_value_of_the_file_is_refused(tmp_path: Path) -> None:
    def forward(module: Any, x: Tensor) -> Any:
        module.h = module.h + x
        return {"y": x * 1, "h_next": module.h}

    with pytest.raises(ExportError, match="the file has another value 'h_next'; rename the state"):
        exported(Keeps(forward), tmp_path)
