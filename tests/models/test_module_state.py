"""States of torch modules: their values between calls, in checkpoints, copies and training; the cell's arithmetic."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subbyte.errors import QuantizationError, UsageError
from subbyte.models.layers.gru import GRUCell
from subbyte.models.over_time import OverTime
from subbyte.models.quant import fake_quantized, get_scheme, quantize
from subbyte.models.quant.estimators.fixed_step import Codes, FixedStep
from subbyte.models.state import (
    detach_states,
    named_states,
    register_state,
    reset_states,
    set_states,
    states_kept,
)


class Sum(nn.Module):
    """The sum of everything that came, times a learned factor."""

    def __init__(self, initial: float = 0.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(2))
        register_state(self, "total", torch.full((1, 2), initial))

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x * self.factor
        return self.total


class Two(nn.Module):
    """The same part under two names, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = Sum(1.0)
        self.c = Sum()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.a(x)))
        return y


def test_a_state_lives_between_calls_and_begins_again() -> None:
    model = Sum(5.0).eval()
    x = torch.tensor([[1.0, 2.0]])
    assert model(x).tolist() == [[6, 7]]
    assert model(x).tolist() == [[7, 9]]
    with states_kept(model, batch=3):
        assert model(x).tolist() == [[6, 7]] * 3
    assert named_states(model)["total"].tolist() == [[7, 9]]
    reset_states(model)
    assert model(x).tolist() == [[6, 7]]
    set_states(model, {"total": torch.zeros(1, 2)})
    assert model(x).tolist() == [[1, 2]]
    with pytest.raises(QuantizationError, match=r"no state 'totl'; it has total"):
        set_states(model, {"totl": torch.zeros(1, 2)})


def test_a_shared_module_has_one_state_and_others_their_own() -> None:
    model = Two().eval()
    assert list(named_states(model)) == ["a.total", "c.total"]
    x = torch.tensor([[1.0, 1.0]])
    model(x)
    assert named_states(model)["a.total"].tolist() == [[4, 4]]  # 1 + 1, then twice that
    assert named_states(model)["c.total"].tolist() == [[4, 4]]


def test_the_initial_value_is_saved_and_the_value_is_not() -> None:
    model = Sum(5.0)
    model(torch.ones(1, 2))
    saved = model.state_dict()
    assert set(saved) == {"factor", "initial_total"}
    other = Sum(0.0)
    other(torch.ones(1, 2))
    other.load_state_dict(saved)
    assert named_states(other)["total"].tolist() == [[5, 5]]
    again = copy.deepcopy(other)
    again(torch.ones(1, 2))
    assert named_states(other)["total"].tolist() == [[5, 5]]
    assert named_states(again)["total"].tolist() == [[6, 6]]


def test_gradients_go_through_calls_until_they_are_cut() -> None:
    model = Sum()
    x = torch.tensor([[1.0, 3.0]])
    for _ in range(4):
        y = model(x)
    y.sum().backward()
    assert model.factor.grad is not None
    assert model.factor.grad.tolist() == [4, 12]
    model.factor.grad = None
    detach_states(model)
    model(x).sum().backward()
    assert model.factor.grad.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("name", "initial", "reason"),
    [
        ("factor", torch.zeros(1, 2), "the name is taken"),
        ("a b", torch.zeros(1, 2), "is not an identifier"),
        ("h", torch.zeros(2, 2), r"\[2, 2\], expected float32 \[1, ...\]"),
        ("h", torch.zeros(()), "expected float32"),
        ("h", torch.zeros(1, 0), "expected float32"),
        ("h", torch.zeros(1, 2, dtype=torch.int8), "torch.int8"),
        ("h", torch.full((1, 2), torch.nan), "NaN or infinity"),
    ],
)
def test_what_cannot_be_a_state_is_refused(name: str, initial: Tensor, reason: str) -> None:
    with pytest.raises(QuantizationError, match=reason):
        register_state(Sum(), name, initial)


def test_quantize_runs_its_example_beside_the_states() -> None:
    class Layered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.layer = Sum(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return self.layer(self.sum(x))

    model = Layered()
    quantize(model, "int8", example=torch.ones(4, 2))
    assert named_states(model)["sum.total"].tolist() == [[0, 0]]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
def test_the_example_of_quantize_may_be_several_sequences(form: Any) -> None:
    """The states are then those of as many; a Concat takes no two batches."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused, self.last = nn.Linear(5, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            register_state(self, "h", torch.zeros(1, 3))

        def forward(self, x: Tensor) -> Any:
            self.h = torch.relu(self.first(torch.cat([x, self.h], 1)))
            return self.last(self.h)

    model = quantize(Joined(), "ternary", example=form(torch.ones(4, 2)))
    kinds = {row.layer: row.weights for row in model.quantization_report}
    assert kinds == {"first": "int8", "unused": "float", "last": "int8"}  # which the example executed
    assert named_states(model)["h"].shape == (1, 3)


# ---- sequences ----


def test_a_sequence_is_its_steps_and_leaves_the_states_of_the_step() -> None:
    torch.manual_seed(0)
    step = GRUCell(3, 5)
    model = OverTime(step, axis=2)
    x = torch.randn(4, 3, 6)
    model(x)  # starts the quantizers
    model.eval()
    got = model(x)
    assert named_states(step)["h"].shape == (1, 5)
    assert not named_states(step)["h"].any()
    reset_states(step, 4)
    for at in range(6):
        last = step(x[:, :, at])
    assert torch.equal(got, last)


# ---- integers ----


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"), [(8, True, -128, 127), (8, False, 0, 255), (4, True, -8, 7)]
)
def test_codes_are_nearest_integers_within_their_range(bits: int, signed: bool, low: int, high: int) -> None:
    codes = Codes(bits, signed=signed)
    x = torch.linspace(-300, 300, 2401, requires_grad=True)  # steps of 1/4: ties among them
    expected = np.clip(np.rint(x.detach().numpy()), low, high)
    y = codes(x)
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    np.testing.assert_array_equal(codes.eval()(x).detach().numpy(), expected)
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), ((x >= low) & (x <= high)).float().numpy())


@pytest.mark.parametrize("options", [{"step": 0.0}, {"step": -1.0}, {"step": float("nan")}, {"step": 1.0, "bits": 9}])
def test_a_fixed_step_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match="FixedStep has"):
        FixedStep(**options)


@pytest.mark.parametrize("scheme", ["int8", "ternary", "pow2", "binary"])
def test_the_cell_is_integers_between_its_products(scheme: str) -> None:
    """The state in NumPy: the gates' codes of the cell's tables, and h' = n + round(z (h - n) / 256) by integers."""
    torch.manual_seed(0)
    cell = GRUCell(4, 6)
    quantize(cell, get_scheme(scheme, keep=None))
    with torch.no_grad():
        for x in torch.randn(20, 3, 4):
            cell(x)
    cell.eval()
    reset_states(cell, 3)
    seen: dict[str, Tensor] = {}
    for name in ("gate_codes", "candidate_codes"):
        cell.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    h = np.zeros((3, 6), np.int64)
    for x in torch.randn(50, 3, 4):
        y = cell(x).detach().numpy()
        gates, n = (seen[name].detach().numpy().astype(np.int64) for name in ("gate_codes", "candidate_codes"))
        numerator = 256 * n + gates[:, 6:] * (h - n)
        quotient, rest = np.divmod(numerator, 256)
        h = np.clip(quotient + ((rest > 128) | ((rest == 128) & (quotient % 2 == 1))), -128, 127)
        np.testing.assert_array_equal(cell.h.detach().numpy(), h)
        np.testing.assert_array_equal(y, h / 128)
        observed = cell.hidden_gates.activation_quantizer.codes(torch.from_numpy(y))
        np.testing.assert_array_equal(observed.numpy(), h)  # the products read the codes of the state
    assert np.unique(h).size > 3


def test_eval_mode_differs_from_training_by_rounding_alone() -> None:
    torch.manual_seed(0)
    cell = GRUCell(4, 6)
    quantize(cell, get_scheme("int8", keep=None))
    xs = torch.randn(30, 3, 4)
    for x in xs:
        cell(x)
    cell.eval()
    ends = []
    for training in (True, False):
        reset_states(cell, 3)
        with torch.no_grad():
            if training:
                with fake_quantized(cell):
                    ends.append([cell(x) for x in xs])
            else:
                ends.append([cell(x) for x in xs])
    assert (torch.stack(ends[0]) - torch.stack(ends[1])).abs().mean() < 1 / 128


def test_a_cell_without_values_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        GRUCell(3, 0)
