"""Every registered loss: gradients, what is left out, order, reductions; golden values of each from the literature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from subbyte.errors import UsageError
from subbyte.models.losses import Objective, Outputs, Targets, get_loss, list_losses
from subbyte.models.losses.example import example_for

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
LABEL = torch.tensor([0, 2])
SAMPLES = 6

# Means on the logits and labels above, computed by an independent implementation of the formula.
GOLDEN = {"cross-entropy": 0.621627, "kd(temperature=2, alpha=1)": 0.223420}


def batch(name: str, samples: int = SAMPLES, seed: int = 1) -> tuple[Objective, Outputs, Targets]:
    """The loss in float64, its memory filled by a step on other samples, and a batch."""
    objective = Objective(name).double()
    outputs, targets = example_for(get_loss(name), samples, seed + 1)
    objective.prepare(outputs, samples=samples)
    objective(outputs, targets)
    return objective.eval(), *example_for(get_loss(name), samples, seed)


def with_rows(outputs: Outputs, targets: Targets, rows: Tensor) -> tuple[Outputs, Targets]:
    return outputs.mapped(lambda t: t[rows]), targets.mapped(lambda t: t[rows])


def leaves(outputs: Outputs) -> tuple[list[Tensor], Callable[..., Outputs]]:
    """The tensors that a gradient reaches, and what makes the outputs again from such tensors."""
    tensors = [t.clone().requires_grad_() for path, t in outputs.tensors() if not path.startswith("teacher.")]

    def again(*values: Tensor) -> Outputs:
        left = list(values)
        own = {path for path, _ in outputs.tensors() if not path.startswith("teacher.")}
        taught = any(path.startswith("teacher.") for path, _ in outputs.tensors())
        return Outputs(
            **{name: left.pop(0) for name in ("logits", "prediction", "embeddings") if name in own},
            features={name: left.pop(0) for name in outputs.features},
            teacher=outputs.teacher if taught else None,
        )

    return tensors, again


def as_targets(targets: Targets, **others: Tensor) -> Targets:
    return Targets(**{**dict(targets.tensors()), **others})


@pytest.mark.parametrize("name", list_losses())
def test_gradient_in_float64(name: str) -> None:
    objective, outputs, targets = batch(name)
    tensors, again = leaves(outputs)
    weighted = as_targets(targets, weight=torch.linspace(0.2, 1.5, SAMPLES, dtype=torch.float64))
    learned = tuple(objective.parameters())

    def value(*inputs: Tensor) -> Tensor:
        return objective(again(*inputs[: len(tensors)]), weighted).value

    assert torch.autograd.gradcheck(value, (*tensors, *learned), atol=1e-6)


@pytest.mark.parametrize("name", list_losses())
def test_what_is_masked_is_in_neither_value_nor_gradient(name: str) -> None:
    objective, outputs, targets = batch(name)
    mask = torch.tensor([True, False, True, True, False, True])
    rows = mask.nonzero().squeeze(1)
    damaged = outputs.mapped(lambda t: torch.where(mask.reshape(-1, *[1] * (t.dim() - 1)), t, torch.nan))
    tensors, again = leaves(damaged)
    found = objective(again(*tensors), as_targets(targets, mask=mask)).value
    expected = objective(*with_rows(outputs, targets, rows)).value
    assert torch.equal(found, expected)
    for tensor, gradient in zip(tensors, torch.autograd.grad(found, tensors), strict=True):
        assert torch.isfinite(gradient).all()
        assert not gradient[~mask].any()
        assert gradient[mask].any(), tensor.shape


@pytest.mark.parametrize("name", list_losses())
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_selected_is_zero_with_a_graph(name: str, reduction: Any) -> None:
    objective, outputs, targets = batch(name)
    tensors, again = leaves(outputs.mapped(lambda t: t * torch.nan))
    found = objective(again(*tensors), as_targets(targets, mask=torch.zeros(SAMPLES, dtype=torch.bool)), reduction)
    assert found.value.item() == 0
    for gradient in torch.autograd.grad(found.value, [*tensors, *objective.parameters()]):
        assert not gradient.any()


@pytest.mark.parametrize("name", list_losses())
@given(seed=st.integers(0, 1000))
def test_equivariant_over_the_batch_and_coupled_as_declared(name: str, seed: int) -> None:
    entry = get_loss(name)
    objective, outputs, targets = batch(name, seed=seed)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))
    plain = objective(outputs, targets, "none").value
    assert plain.shape == (SAMPLES,)
    if entry.equivariant:
        moved = objective(*with_rows(outputs, targets, order), "none").value
        torch.testing.assert_close(moved, plain[order])
    if not entry.coupled:
        half = torch.arange(3)
        torch.testing.assert_close(objective(*with_rows(outputs, targets, half), "none").value, plain[:3])


@pytest.mark.parametrize("name", list_losses())
def test_reductions_and_weights_agree(name: str) -> None:
    objective, outputs, targets = batch(name)
    weight = torch.tensor([2.0, 0.5, 0.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    plain = objective(outputs, targets, "none").value
    weighted = as_targets(targets, weight=weight)
    torch.testing.assert_close(objective(outputs, weighted, "none").value, plain * weight)
    torch.testing.assert_close(objective(outputs, weighted, "sum").value, (plain * weight).sum())
    torch.testing.assert_close(objective(outputs, weighted).value, (plain * weight).sum() / weight.sum())
    torch.testing.assert_close(objective(outputs, targets).value, plain.mean())


@pytest.mark.parametrize("name", [name for name in list_losses() if "logits" in get_loss(name).needs])
def test_large_logits_stay_finite(name: str) -> None:
    objective, outputs, targets = batch(name)
    tensors, again = leaves(outputs.mapped(lambda t: 1e4 * t.sign()))
    found = objective(again(*tensors), targets).value
    assert torch.isfinite(found)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(found, tensors))


@pytest.mark.parametrize("name", list_losses())
def test_half_precision_is_computed_in_single(name: str) -> None:
    objective, outputs, targets = batch(name)
    objective = objective.float()
    rounded = outputs.mapped(torch.Tensor.bfloat16)
    found = objective(rounded, as_targets(targets).mapped(_single)).value
    expected = objective(rounded.mapped(torch.Tensor.float), as_targets(targets).mapped(_single)).value
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(rounded, as_targets(targets).mapped(_single)).value, expected)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


# ---- golden values ----


@pytest.mark.parametrize(("text", "expected"), GOLDEN.items())
def test_golden_values(text: str, expected: float) -> None:
    found = Objective(text)(Outputs(LOGITS, teacher=Outputs(TEACHER)), Targets(LABEL)).value
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_label_smoothing_equals_torch() -> None:
    ours = Objective("ce(label_smoothing=0.1)")(Outputs(LOGITS), Targets(LABEL)).value
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(LOGITS, LABEL, label_smoothing=0.1))


def test_kd_is_cross_entropy_at_alpha_zero_and_zero_for_its_own_teacher() -> None:
    hard = Objective("kd(alpha=0)")(Outputs(LOGITS, teacher=Outputs(TEACHER)), Targets(LABEL)).value
    assert hard.item() == pytest.approx(0.621627, abs=1e-6)
    own = Objective("kd(alpha=1)")(Outputs(LOGITS, teacher=Outputs(LOGITS + 3.0)), Targets(LABEL)).value
    assert own.item() == pytest.approx(0.0, abs=1e-12)


def test_soft_targets_of_one_hot_labels_equal_labels() -> None:
    soft = torch.nn.functional.one_hot(LABEL, 3).double()
    by_soft = Objective("ce")(Outputs(LOGITS), Targets(soft=soft)).value
    by_label = Objective("ce")(Outputs(LOGITS), Targets(LABEL)).value
    assert torch.allclose(by_soft, by_label)


@pytest.mark.parametrize("name", ["ce", "kd"])
@given(shift=st.floats(-50, 50))
def test_a_constant_added_to_the_logits_changes_nothing(name: str, shift: float) -> None:
    teacher = Outputs(TEACHER)
    plain = Objective(name)(Outputs(LOGITS, teacher=teacher), Targets(LABEL)).value.item()
    moved = Objective(name)(Outputs(LOGITS + shift, teacher=teacher), Targets(LABEL)).value.item()
    assert math.isclose(moved, plain, rel_tol=1e-9)


def test_binary_cross_entropy_equals_torch_for_several_labels_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, label = torch.randn(4, 7, generator=generator), torch.randint(-1, 2, (4, 7), generator=generator)
    found = Objective("bce(positive_weight=3)")(Outputs(scores), Targets(label)).value
    known = label >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        scores[known], label[known].float(), pos_weight=torch.tensor(3.0)
    )
    torch.testing.assert_close(found, expected)


def test_supcon_is_equation_2_of_its_paper() -> None:
    outputs, targets = example_for(get_loss("supcon"), samples=5, seed=3)
    found = Objective("supcon(temperature=0.5, base_temperature=0.5)")(outputs, targets, "none").value
    z = [v / v.norm() for sample in outputs.embeddings for v in sample]
    label = [int(y) for y in targets.label for _ in range(2)]
    expected = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        total = sum(math.exp(z[i] @ z[a] / 0.5) for a in others)
        same = [p for p in others if label[p] == label[i]]
        expected.append(-sum(math.log(math.exp(z[i] @ z[p] / 0.5) / total) for p in same) / len(same))
    assert found.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(expected[::2], expected[1::2], strict=True)])


def test_supcon_needs_two_views_of_each_sample() -> None:
    one_view = Outputs(embeddings=torch.randn(4, 1, 5))
    with pytest.raises(UsageError, match=r"embeddings \[4, 1, 5\], .*expected embeddings \[N, V, D\] with V >= 2"):
        Objective("supcon")(one_view, Targets(torch.zeros(4, dtype=torch.int64)))


@given(errors=st.lists(st.floats(-20, 20), min_size=1, max_size=8), delta=st.floats(0.1, 10))
def test_huber_equals_torch(errors: list[float], delta: float) -> None:
    value = torch.linspace(-1, 1, len(errors), dtype=torch.float64)
    prediction = value + torch.tensor(errors, dtype=torch.float64)
    found = Objective("huber", {"delta": delta})(Outputs(prediction=prediction), Targets(value=value), "none").value
    torch.testing.assert_close(found, torch.nn.functional.huber_loss(prediction, value, reduction="none", delta=delta))


def test_clip_is_cross_entropy_in_both_directions() -> None:
    outputs, targets = example_for(get_loss("clip"), samples=5)
    first, second = torch.nn.functional.normalize(outputs.embeddings, dim=-1).unbind(1)
    similarity, own = first @ second.T / 0.2, torch.arange(5)
    both = [torch.nn.functional.cross_entropy(s, own) for s in (similarity, similarity.T)]
    found = Objective("clip(temperature=0.2)").double()(outputs, targets).value
    torch.testing.assert_close(found, sum(both) / 2, rtol=1e-6, atol=0)  # the temperature is learned as a float32


def test_moco_has_the_keys_of_earlier_steps_as_negatives() -> None:
    objective = Objective("moco(temperature=0.5, length=6)")
    batches = [example_for(get_loss("moco"), samples=4, seed=seed)[0] for seed in range(3)]
    objective.prepare(batches[0])
    keys: list[Tensor] = []
    for outputs in batches:
        q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (outputs.embeddings, outputs.teacher.embeddings))
        negatives = keys[-6:]
        scores = torch.stack([(q * k).sum(-1), *(q @ n for n in negatives)], dim=-1) / 0.5
        expected = torch.nn.functional.cross_entropy(scores, torch.zeros(4, dtype=torch.int64))
        torch.testing.assert_close(objective(outputs, Targets()).value, expected)
        keys += list(k)
