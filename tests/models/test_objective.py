"""The objective: sums of losses, what counts, memory, what is learned, modules that are read, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_on_two_processes import part_of_two
from torch import Tensor, nn

from subbyte.errors import RegistrationError, UnknownNameError, UsageError
from subbyte.models.losses import Objective, Outputs, Summand, Targets, list_losses, loss, register
from subbyte.models.losses.composition import parse, written
from subbyte.models.losses.memory import QueueOf, Table, TableOf
from subbyte.models.options import Positive, Share

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
LABEL = torch.tensor([0, 2])


def moco(seed: int, samples: int = 4) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, samples, 5, generator=generator)
    return Outputs(embeddings=student, teacher=Outputs(embeddings=teacher))


@pytest.fixture(autouse=True)
def _forgets_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "_LOSSES", dict(register._LOSSES))
    monkeypatch.setattr(register, "_ALIASES", dict(register._ALIASES))


# ---- sums ----


def test_a_sum_is_the_sum_of_its_losses() -> None:
    outputs = Outputs(LOGITS, teacher=Outputs(LOGITS.flip(0)))
    found = Objective("ce(label_smoothing=0.1) - 0.5*kd(temperature=4, alpha=1)")(outputs, Targets(LABEL))
    hard = Objective("ce(label_smoothing=0.1)")(outputs, Targets(LABEL)).value
    soft = Objective("kd", {"temperature": 4, "alpha": 1})(outputs, Targets(LABEL)).value
    torch.testing.assert_close(found.value, hard - 0.5 * soft)
    assert found.logs == {"ce(label_smoothing=0.1)": hard, "kd(temperature=4, alpha=1)": soft}


WORDS = st.from_regex(r"[a-z]\w{0,5}(-[a-z]\w{0,3})?", fullmatch=True)
NUMBERS = st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.booleans() | st.none() | WORDS | st.sampled_from(["1", "a b", "0:input", "none", "stages.0"])
SUMMANDS = st.builds(
    Summand,
    WORDS,
    st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    st.dictionaries(st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), VALUES | st.lists(VALUES, max_size=3), max_size=3),
)


@given(st.lists(SUMMANDS, min_size=1, max_size=3).map(tuple))
def test_text_and_terms_say_the_same(summands: tuple[Summand, ...]) -> None:
    assert parse(written(summands)) == summands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the end at column 1, expected the name of a loss"),
        ("ce + ", "found the end at column 6, expected the name of a loss"),
        ("ce kd", r"found 'kd' at column 4, expected '\+', '-' or the end"),
        ("2 ce", r"found 'ce' at column 3, expected '\*'"),
        ("0*ce", "expected a finite number that is not 0"),
        ("1e999*ce", "expected a finite number that is not 0"),
        ("ce(label_smoothing)", r"found '\)' at column 19, expected '='"),
        ("ce(a=1, a=2)", "found 'a' at column 9, expected the name of another option"),
        ("ce(label_smoothing=", "expected a value"),
        ("ce ? kd", r"found '\?' at column 4"),
        ("ce + ce", "'ce' occurs twice"),
        ("ce(label_smoothing=1)", r"option 'label_smoothing' is 1, expected a number in \[0, 1\)"),
        ("ce(gamma=1)", "no option 'gamma'; its options: label_smoothing"),
        ("kd(temperature=0)", r"option 'temperature' is 0, expected a number in \(0, inf\)"),
        ("moco(length=0)", r"option 'length' is 0, expected a number in \[1, inf\)"),
        ("moco(embeddings=[a, b])", "embeddings names 2 modules, expected one"),
        ("cross_entropy", "Did you mean 'cross-entropy'"),
    ],
)
def test_text_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Objective(text)


def test_options_beside_a_sum_are_refused() -> None:
    with pytest.raises(UsageError, match=r"write them in it, e\.g\. kd\(temperature=4\)"):
        Objective("ce + kd", {"temperature": 4})


# ---- what counts ----


def test_a_negative_label_leaves_a_row_out_of_the_losses_that_read_labels() -> None:
    outputs, targets = Outputs(LOGITS, prediction=LABEL.double()), Targets(torch.tensor([0, -100]), value=LABEL + 1.0)
    assert torch.equal(
        Objective("ce")(outputs, targets).value, Objective("ce")(Outputs(LOGITS[:1]), Targets(LABEL[:1])).value
    )
    assert Objective("huber")(outputs, targets, "none").value.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["ce", "kd"])
def test_positions_are_rows(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    label = torch.randint(-1, 5, (2, 3, 4), generator=generator)
    weight = torch.tensor([1.0, 3.0])
    objective = Objective(name)
    found = objective(Outputs(logits, teacher=Outputs(teacher)), Targets(label, weight=weight))
    flat = Outputs(logits.reshape(24, 5), teacher=Outputs(teacher.reshape(24, 5)))
    expected = objective(flat, Targets(label.reshape(24), weight=weight.repeat_interleave(12)))
    torch.testing.assert_close(found.value, expected.value)
    each = objective(Outputs(logits, teacher=Outputs(teacher)), Targets(label), "none").value
    assert each.shape == label.shape
    assert torch.equal(each != 0, label >= 0)


def test_a_language_model_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 7, 11, generator=generator), torch.randint(0, 11, (2, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    found = Objective("ce(label_smoothing=0.1)")(Outputs(logits), Targets(label, mask=mask)).value
    ignored = torch.where(mask, label, -100)
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), ignored, label_smoothing=0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("text", "outputs", "targets", "message"),
    [
        ("ce", Outputs(LOGITS[:, 0]), Targets(LABEL), r"logits \[2\], label \[2\]; expected logits \[2, C\]"),
        ("bce", Outputs(LOGITS), Targets(LABEL), r"logits \[2, 3\], label \[2\]; expected logits \[2\]"),
        ("huber", Outputs(prediction=LOGITS), Targets(value=LABEL.double()), r"expected prediction \[2\]"),
        ("moco", moco(0).replaced(embeddings=torch.randn(4, 2, 5)), Targets(), r"expected embeddings \[N, D\]"),
    ],
)
def test_shapes_that_a_loss_does_not_take_are_refused(
    text: str, outputs: Outputs, targets: Targets, message: str
) -> None:
    objective = Objective(text)
    if objective.has_memory:
        objective.prepare(outputs)
    with pytest.raises(UsageError, match=message):
        objective(outputs, targets)


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (Outputs(), Targets(LABEL), "loss 'kd' needs logits"),
        (Outputs(LOGITS), Targets(LABEL), "loss 'kd' needs a teacher; give the folder of a trained checkpoint"),
        (Outputs(LOGITS, teacher=Outputs(LOGITS)), Targets(), "needs labels, .* or soft targets"),
        (Outputs(LOGITS, teacher=Outputs(LOGITS[:, :2])), Targets(LABEL), r"logits \[2, 2\].*logits of one shape"),
        (Outputs(LOGITS, teacher=Outputs(LOGITS)), Targets(LABEL[:1]), r"logits \[2, 3\].*label \[1\]; expected \[1\]"),
        (
            Outputs(LOGITS, teacher=Outputs(LOGITS)),
            Targets(LABEL, mask=torch.ones(3)),
            r"the mask is \[3\], expected \[2\]",
        ),
        (Outputs(LOGITS, teacher=Outputs(LOGITS)), Targets(LABEL, weight=torch.ones(2, 1)), r"the weight is \[2, 1\]"),
    ],
)
def test_batches_that_do_not_fit_are_refused(outputs: Outputs, targets: Targets, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Objective("kd")(outputs, targets)


def test_an_unknown_reduction_and_losses_of_different_positions_are_refused() -> None:
    with pytest.raises(UsageError, match="reduction must be 'mean', 'sum' or 'none', got 'average'"):
        Objective("ce")(Outputs(LOGITS), Targets(LABEL), "average")  # type: ignore[arg-type]
    tokens = Outputs(LOGITS[None], prediction=LABEL[:1].double())
    with pytest.raises(UsageError, match="different positions"):
        Objective("ce + huber")(tokens, Targets(LABEL[None], value=LABEL[:1].double()), "none")


# ---- memory, and what is learned ----


def test_memory_is_saved_and_taken_up_exactly() -> None:
    text = "moco(length=6)"
    first, second = Objective(text), Objective(text)
    for objective in (first, second):
        objective.prepare(moco(0))
    for seed in range(3):
        first(moco(seed), Targets())
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        assert torch.equal(first(moco(seed), Targets()).value, second(moco(seed), Targets()).value)


def test_evaluation_and_masked_rows_write_nothing() -> None:
    objective = Objective("moco(length=6)")
    objective.prepare(moco(0))
    objective.eval()(moco(0), Targets())
    queue: Any = objective.terms[0].memory["queue"]  # type: ignore[union-attr,index]
    assert len(queue.rows) == 0
    objective.train()(moco(0), Targets(mask=torch.tensor([True, False, False, True])))
    keys = nn.functional.normalize(moco(0).teacher.embeddings, dim=-1)
    assert torch.equal(queue.rows, keys[[0, 3]])
    objective(moco(1, samples=20), Targets())  # more rows than the queue has: the last ones
    assert {tuple(row) for row in queue.rows.tolist()} == {
        tuple(row) for row in nn.functional.normalize(moco(1, 20).teacher.embeddings, dim=-1)[-6:].tolist()
    }


def test_memory_that_was_not_made_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'moco' has no memory yet; call objective\.prepare"):
        Objective("moco")(moco(0), Targets())


@pytest.fixture
def averaged() -> str:
    @loss("averaged", needs=("prediction", "ids"), source="test", memory={"last": TableOf("prediction", scalar=True)})
    def function(outputs: Outputs, targets: Targets, last: Table) -> Tensor:
        """squared distance from the prediction of the last epoch"""
        before = torch.where(last.was_written(targets.ids), last.read(targets.ids), outputs.prediction.detach())
        last.write(targets.ids, outputs.prediction)
        return (outputs.prediction - before) ** 2

    return "averaged"


def test_a_table_has_a_row_for_each_sample(averaged: str) -> None:
    objective = Objective(averaged)
    assert objective.has_memory
    objective.prepare(Outputs(prediction=torch.zeros(2)), samples=5)

    def value(prediction: list[float], ids: list[int]) -> list[float]:
        return objective(
            Outputs(prediction=torch.tensor(prediction)), Targets(ids=torch.tensor(ids)), "none"
        ).value.tolist()

    assert value([1.0, 2.0], [4, 0]) == [0, 0]
    assert value([5.0, 3.0], [0, 1]) == [9, 0]
    assert value([0.0, 0.0, 0.0], [0, 1, 4]) == [25, 9, 1]
    with pytest.raises(UsageError, match=r"sample numbers are 0 to 5, the table of the loss has 5 rows"):
        value([0.0, 0.0], [0, 5])
    with pytest.raises(UsageError, match="needs the number of training samples"):
        Objective(averaged).prepare(Outputs(prediction=torch.zeros(2)))


def test_a_learned_temperature_is_trained_without_decay_and_stays_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    objective = Objective("clip(temperature=0.5)")
    (group,) = objective.parameter_groups()
    assert group["weight_decay"] == 0
    optimizer = torch.optim.SGD([group], lr=0.5)
    same = torch.randn(8, 1, 5, generator=generator).expand(8, 2, 5)  # views agree: a smaller temperature is better
    for _ in range(20):
        optimizer.zero_grad()
        objective(Outputs(embeddings=same), Targets()).value.backward()
        optimizer.step()
    (learned,) = objective.parameters()
    assert 0 < learned.exp().item() < 0.45
    assert Objective("ce").parameter_groups() == []


# ---- modules that are read ----


def network(width: int = 6) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def hints() -> str:
    @loss("hints", needs=("features", "teacher.features"), source="test", per="sample")
    def function(outputs: Outputs, targets: Targets) -> Tensor:
        """squared distance of features from those of a teacher"""
        pairs = zip(outputs.features.values(), outputs.teacher.features.values(), strict=True)
        return torch.stack([((mine - its) ** 2).sum(-1) for mine, its in pairs]).sum(0)

    return "hints"


def test_modules_are_read_because_a_loss_names_them(hints: str) -> None:
    model, teacher, x, label = network(1), network(2), torch.randn(5, 2, 2), torch.zeros(5, dtype=torch.int64)
    objective = Objective(
        f'ce + {hints}(features=["1", "3:input"], teacher_features=["1", "3:input"])'
        f' + {hints}(features="3", teacher_features="3")'
    )
    objective.check({"logits", "label", "teacher.logits"}, model=model, teacher=teacher)
    with objective.attached(model, teacher):
        outputs = Outputs(model(x), teacher=Outputs(teacher(x)))
        copy.deepcopy(model)(2 * x)  # a copy of the model, such as a moving average, is not read
        found = objective(outputs, Targets(label))
        with pytest.raises(UsageError, match="module '1' of the model did not run since the last step"):
            objective(outputs, Targets(label))
    mine, its = model[:2](x), teacher[:2](x)
    hidden = ((mine - its) ** 2).sum(-1) + ((mine.relu() - its.relu()) ** 2).sum(-1)
    expected = [
        nn.functional.cross_entropy(model(x), label),
        hidden.mean(),
        ((model(x) - teacher(x)) ** 2).sum(-1).mean(),
    ]
    for value, wanted in zip(found.logs.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted.detach())
    found.value.backward()
    by_hand = torch.autograd.grad(sum(expected), model[1].weight)
    torch.testing.assert_close(model[1].weight.grad, by_hand[0])
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_no_hook_without_a_loss_that_needs_it_and_none_afterwards() -> None:
    def hooks(model: nn.Module) -> list[str]:
        return [name for name, module in model.named_modules() if module._forward_hooks]

    model, teacher = network(1), network(2)
    with Objective("ce + kd").attached(model, teacher):
        assert hooks(model) == hooks(teacher) == []
    with Objective('ce + moco(embeddings="3:input")').attached(model, teacher):
        assert hooks(model) == ["3"]
        assert hooks(teacher) == []
    assert hooks(model) == []


def test_embeddings_of_views_are_rows_next_to_each_other() -> None:
    model, x = network(), torch.randn(4, 2, 2, 2)
    label = torch.tensor([0, 1, 0, 1])
    objective = Objective('supcon(embeddings="3:input")')
    objective.check({"label", "views"}, model=model)
    with objective.attached(model):
        model(x.flatten(0, 1))
        found = objective(Outputs(views=2), Targets(label)).value
    embeddings = torch.stack([model[:3](x[:, view]) for view in range(2)], dim=1)
    torch.testing.assert_close(found, Objective("supcon")(Outputs(embeddings=embeddings), Targets(label)).value)


@pytest.mark.parametrize(
    ("text", "given_names", "message"),
    [
        ("kd", {"logits", "label"}, "loss 'kd' needs a teacher; give the folder of a trained checkpoint as teacher"),
        ("ce + huber", {"logits", "label"}, "loss 'huber' needs predictions, real values .* and a task with real"),
        ("supcon", {"label", "views"}, r"needs embeddings \[N, V, D\] .* e\.g\. LOSS\(embeddings=head:input\)"),
        (
            "supcon(embeddings=head)",
            {"label"},
            r"needs embeddings \[N, V, D\] of V >= 2 views .* whose batches have views",
        ),
        ("moco(embeddings=head)", {"logits", "teacher.logits"}, "needs a teacher's embeddings"),
        ("moco(embeddings=head, teacher_embeddings=head)", {"logits"}, "needs a teacher's embeddings"),
        ("ce", {"logits", "label", "teacher.logits"}, "loss 'ce' learns nothing from a teacher; leave it out"),
        ("bce", {"logits", "label"}, "needs scores .* a task with several labels per sample, or two classes"),
        ("ce", {"logits"}, r"needs labels, int64 \[N, \.\.\.\] or soft targets"),
    ],
)
def test_what_is_missing_is_refused_before_any_work(text: str, given_names: set[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Objective(text).check(given_names)


def test_modules_that_do_not_exist_are_refused_with_the_nearest_name(hints: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

    names = {"logits", "teacher.logits"}
    with pytest.raises(UnknownNameError, match=r"unknown module of the model 'heat'\. Did you mean 'head'"):
        Objective("moco(embeddings=heat:input, teacher_embeddings=head)").check(names, model=Named(), teacher=Named())
    with pytest.raises(UnknownNameError, match="unknown module of the teacher 'body'"):
        Objective("moco(embeddings=head, teacher_embeddings=body)").check(names, model=Named(), teacher=Named())


# ---- several processes ----


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Values, gradients and memory of a batch that is divided, with another number of masked rows on each."""
    torch.multiprocessing.spawn(part_of_two, (str(tmp_path / "rendezvous"),), nprocs=2)


# ---- entries that are refused ----


def good(outputs: Outputs, targets: Targets, factor: Positive = 1.0) -> Tensor:
    """factor times the mean logit"""
    return factor * outputs.logits.mean(-1)


def without_default(outputs: Outputs, targets: Targets, factor: float) -> Tensor:
    """a summary"""
    return factor * outputs.logits.mean(-1)


def without_annotation(outputs: Outputs, targets: Targets, factor=1.0) -> Tensor:  # type: ignore[no-untyped-def]
    """a summary"""
    return outputs.logits.mean(-1)


def beyond_its_range(outputs: Outputs, targets: Targets, factor: Positive = 0.0) -> Tensor:
    """a summary"""
    return outputs.logits.mean(-1)


def in_a_share(outputs: Outputs, targets: Targets, share: Share = 0.5) -> Tensor:
    """a summary"""
    return share * outputs.logits.mean(-1)


def named_like_a_tap(outputs: Outputs, targets: Targets, embeddings: str = "x") -> Tensor:
    """a summary"""
    return outputs.logits.mean(-1)


def without_summary(outputs: Outputs, targets: Targets) -> Tensor:
    return outputs.logits.mean(-1)


def of_the_batch(outputs: Outputs, targets: Targets) -> Tensor:
    """a scalar"""
    return outputs.logits.mean()


def in_single(outputs: Outputs, targets: Targets) -> Tensor:
    """float32"""
    return outputs.logits.mean(-1).float()


def infinite(outputs: Outputs, targets: Targets) -> Tensor:
    """infinite"""
    return outputs.logits.mean(-1) / 0


def reads_more(outputs: Outputs, targets: Targets) -> Tensor:
    """reads what it does not declare"""
    return outputs.prediction


def other_arguments(logits: Tensor, label: Tensor) -> Tensor:
    """a summary"""
    return logits.mean(-1)


@pytest.mark.parametrize(
    ("function", "fields", "message"),
    [
        (good, {"name": "Bad_Name"}, "the name 'Bad_Name' must be lower case words with hyphens"),
        (good, {"name": "kd"}, "the name 'kd' is registered already"),
        (good, {"alias": "ce"}, "the name 'ce' is registered already"),
        (good, {"source": " "}, "no source: say author, year and equation"),
        (good, {"needs": ()}, "no needs"),
        (good, {"needs": ("logits", "lable")}, "unknown need 'lable', expected some of logits, scores, prediction"),
        (good, {"learned": ("temperature",)}, "'temperature' is learned but is not an option"),
        (good, {"memory": {"queue": TableOf("logits")}}, "has no parameter 'queue' for its memory"),
        (good, {"memory": {"factor": TableOf("value")}}, "memory 'factor' is of 'value', expected one of its needs"),
        (good, {"memory": {"factor": QueueOf("logits", "size")}}, "as long as option 'size' says, expected an option"),
        (without_summary, {}, "no summary"),
        (without_default, {}, "option 'factor' has no default"),
        (without_annotation, {}, "option 'factor' has no annotation"),
        (beyond_its_range, {}, r"option 'factor' is 0\.0, expected a number in \(0, inf\)"),
        (in_a_share, {"learned": ("share",)}, r"option 'share' is learned within \[0, 1\]"),
        (named_like_a_tap, {}, "option 'embeddings' is the name of an option that names modules"),
        (other_arguments, {}, r"takes \(logits, label\), expected \(outputs, targets"),
        (of_the_batch, {}, r"fails .*gave \[\] for 4 rows, expected \[4\]: return one value per row"),
        (in_single, {}, "gives torch.float32 .*expected finite float64"),
        (infinite, {}, "gives torch.float64 .*inf.*expected finite float64"),
        (reads_more, {}, "fails .*needs predictions, real values"),
    ],
)
def test_incomplete_entries_are_refused_at_registration(
    function: Callable[..., Tensor], fields: dict[str, Any], message: str
) -> None:
    before = list_losses()
    with pytest.raises(RegistrationError, match=message):
        loss(**{"name": "new", "needs": ("logits", "label"), "source": "test", **fields})(function)
    assert list_losses() == before
