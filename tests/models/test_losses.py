"""Losses: golden values, gradients, invariances, and what happens at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import UnknownNameError, UsageError
from subbyte.models.losses import Outputs, Targets, create_loss, get_loss, list_losses

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
LABEL = torch.tensor([0, 2])


def outputs(logits: torch.Tensor = LOGITS, teacher: torch.Tensor = TEACHER) -> Outputs:
    return Outputs(logits=logits, teacher=Outputs(logits=teacher))


def test_cross_entropy_golden_values() -> None:
    result = create_loss("cross-entropy")(Outputs(logits=LOGITS), Targets(label=LABEL))
    assert result.per_sample.tolist() == pytest.approx([0.241311, 1.001943], abs=1e-6)
    assert result.value.item() == pytest.approx(0.621627, abs=1e-6)


def test_label_smoothing_equals_torch() -> None:
    ours = create_loss("cross-entropy", label_smoothing=0.1)(Outputs(logits=LOGITS), Targets(label=LABEL)).value
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(LOGITS, LABEL, label_smoothing=0.1))


def test_kd_golden_value() -> None:
    result = create_loss("kd", temperature=2.0, alpha=1.0)(outputs(), Targets(label=LABEL))
    assert result.value.item() == pytest.approx(0.223420, abs=1e-6)
    assert result.logs["cross_entropy"].item() == pytest.approx(0.621627, abs=1e-6)


def test_kd_is_cross_entropy_at_alpha_zero_and_zero_for_its_own_teacher() -> None:
    hard = create_loss("kd", alpha=0.0)(outputs(), Targets(label=LABEL)).value
    assert hard.item() == pytest.approx(0.621627, abs=1e-6)
    own = create_loss("kd", alpha=1.0)(outputs(teacher=LOGITS + 3.0), Targets(label=LABEL)).value
    assert own.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", list_losses())
def test_gradient_in_float64(name: str) -> None:
    loss = create_loss(name)
    weight = torch.tensor([0.3, 1.7], dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: loss(outputs(z), Targets(label=LABEL), weight=weight).value, (logits,), atol=1e-6
    )


@pytest.mark.parametrize("name", list_losses())
def test_empty_selection_is_zero_with_a_graph(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    result = create_loss(name)(outputs(logits), Targets(label=LABEL), mask=torch.tensor([False, False]))
    result.value.backward()
    assert result.value.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("name", list_losses())
def test_a_masked_row_of_nan_leaves_no_trace(name: str) -> None:
    logits = LOGITS.clone()
    logits[1] = math.nan
    logits.requires_grad_()
    masked = create_loss(name)(outputs(logits), Targets(label=LABEL), mask=torch.tensor([True, False]))
    masked.value.backward()
    alone = create_loss(name)(outputs(LOGITS[:1], TEACHER[:1]), Targets(label=LABEL[:1]))
    assert masked.value.item() == pytest.approx(alone.value.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", list_losses())
def test_negative_labels_are_left_out(name: str) -> None:
    ignored = create_loss(name)(outputs(), Targets(label=torch.tensor([0, -100])))
    masked = create_loss(name)(outputs(), Targets(label=LABEL), mask=torch.tensor([True, False]))
    assert torch.equal(ignored.value, masked.value)


@pytest.mark.parametrize("name", list_losses())
def test_large_logits_stay_finite(name: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    result = create_loss(name)(outputs(logits, -logits.detach()), Targets(label=LABEL))
    result.value.backward()
    assert torch.isfinite(result.value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", list_losses())
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_shift_invariant_and_batch_equivariant(name: str, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (6,), generator=generator)
    order = torch.randperm(6, generator=generator)
    loss = create_loss(name)
    plain = loss(outputs(logits, teacher), Targets(label=label))
    moved = loss(outputs((logits + shift)[order], teacher[order]), Targets(label=label[order]))
    assert torch.allclose(moved.per_sample, plain.per_sample[order])
    assert torch.allclose(moved.value, plain.value)


def test_reductions_agree() -> None:
    loss, weight = create_loss("cross-entropy"), torch.tensor([2.0, 0.5], dtype=torch.float64)
    each = loss(outputs(), Targets(label=LABEL), weight=weight, reduction="none").value
    total = loss(outputs(), Targets(label=LABEL), weight=weight, reduction="sum").value
    mean = loss(outputs(), Targets(label=LABEL), weight=weight).value
    assert torch.allclose(each.sum(), total)
    assert torch.allclose(mean, total / weight.sum())


def test_soft_targets_of_one_hot_labels_equal_labels() -> None:
    soft = torch.nn.functional.one_hot(LABEL, 3).double()
    by_soft = create_loss("cross-entropy")(Outputs(logits=LOGITS), Targets(soft=soft)).value
    by_label = create_loss("cross-entropy")(Outputs(logits=LOGITS), Targets(label=LABEL)).value
    assert torch.allclose(by_soft, by_label)


def test_usage_errors_say_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cross-entropy'"):
        create_loss("cross_entropy")
    with pytest.raises(UsageError, match=r"no option 'tau'.*temperature"):
        create_loss("kd", tau=2)
    with pytest.raises(UsageError, match="temperature must be positive"):
        create_loss("kd", temperature=0.0)
    with pytest.raises(UsageError, match=r"needs `outputs\.teacher\.logits`"):
        create_loss("kd")(Outputs(logits=LOGITS), Targets(label=LABEL))
    assert "teacher" in get_loss("kd").needs
