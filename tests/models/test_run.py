"""`Run`: one configuration as keywords, as YAML and as options; each of its numbers does what its help says."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from subbyte.cli import main
from subbyte.errors import CheckpointError, DataError, RegistrationError, TrainingError, UnknownNameError, UsageError
from subbyte.models import Data, Run, from_datasets, load_checkpoint, load_data, train
from subbyte.models.checkpoint import weights_file
from subbyte.models.checkpoint_files import STATE
from subbyte.models.data import shift_and_flip
from subbyte.models.quant import HasParameterGroups, ParameterGroup, quantize
from subbyte.models.tasks import Metric
from subbyte.models.train.averaging import averaged_decay
from subbyte.models.train.choice import best_epoch, is_over
from subbyte.models.train.held_out import Part, hold_out
from subbyte.models.train.run import CONFIGURATION, read_run
from subbyte.models.train.schedules import get_schedule, list_schedules, schedule

STEPS = 8  # of an epoch: 64 samples in batches of 8


def blobs(count: int = 64) -> Data:
    """Three classes of noisy images 4x4, with an augmentation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count + 30) % 3
    bright = nn.functional.one_hot(labels, 4).float().reshape(-1, 1, 4, 1)
    images = torch.randn(count + 30, 1, 4, 4, generator=generator) + 1.5 * bright
    parts = (TensorDataset(images[:count], labels[:count]), TensorDataset(images[count:], labels[count:]))
    return from_datasets(*parts, classes=3, augment=shift_and_flip(1))


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3))


def quick(folder: Path, model: nn.Module | None = None, **fields: Any) -> Any:
    fields = {"scheme": "ternary", "epochs": 2, "batch_size": 8, "accelerator": "cpu", "progress": False, **fields}
    return train(net() if model is None else model, blobs(), out=folder, **fields)


class Steps(Callback):
    """What happened in each batch; `stop` raises before that batch, `do` is called at its end."""

    def __init__(self, stop: int | None = None, interrupt: int | None = None) -> None:
        self.stop, self.interrupt, self.count = stop, interrupt, 0
        self.rates: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.count == self.stop:
            raise RuntimeError("the power went out")
        if self.count == self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
        self.count += 1
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in learner.model.parameters()]))


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_file(weights_file(one)), load_file(weights_file(other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- one configuration ----


def test_a_run_is_the_same_as_text_as_keywords_and_as_options(tmp_path: Path) -> None:
    run = Run(
        "mlp", scheme="int4", epochs=3, learning_rate=1e-3, model_options={"hidden": (8, 4)}, ema=0.9, num_nodes=2,
        scheme_options={"group_size": 8, "keep": None}, keep="best", augment=False, out=str(tmp_path / "a: b # c"),
    )  # fmt: skip
    (tmp_path / "r.yaml").write_text(run.as_text())
    assert read_run(tmp_path / "r.yaml") == run
    arguments = [
        "train", "mlp", "--scheme", "int4", "--epochs", "3", "--learning-rate", "1e-3", "--model-option", "hidden=8,4",
        "--ema", "0.9", "--nodes", "2", "--scheme-option", "group_size=8", "--scheme-option", "keep=none", "--keep",
        "best", "--no-augment", "--out", str(tmp_path / "a: b # c"), "--print-config",
    ]  # fmt: skip
    assert CliRunner().invoke(main, arguments).output == run.as_text()
    arguments = ["train", "--config", str(tmp_path / "r.yaml"), "--epochs", "5", "--print-config"]
    (tmp_path / "s.yaml").write_text(CliRunner().invoke(main, arguments).output)
    assert read_run(tmp_path / "s.yaml") == Run(**{**run.as_dict(), "epochs": 5})


def test_every_field_is_an_option_with_its_help(tmp_path: Path) -> None:
    words = " ".join(CliRunner().invoke(main, ["train", "--help"]).output.split())
    for one in fields(Run):
        assert one.metadata["help"]
        if one.name != "model":
            assert " ".join(one.metadata["help"].split()[:2]) in words, one.name


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("epochs: 0", UsageError, r"r\.yaml: epochs must be positive, got 0"),
        ("epoch: 3", UnknownNameError, "Did you mean 'epochs'"),
        ("epochs: [1]", UsageError, r"'epochs' is \[1\], expected one of: int"),
        ("schedule: cosin", UnknownNameError, "Did you mean 'cosine'"),
        ("schedule_options: {gama: 1}", UsageError, "no option 'gama'"),
        ("{schedule: step, schedule_options: {gamma: 2.0}}", UsageError, "'gamma' is 2.0"),
        ("{schedule: one-cycle, warmup: 0.1}", UsageError, "has its own rise"),
        ("learning_rate: .nan", UsageError, "learning_rate must be positive"),
        ("- epochs", UsageError, "holds a list"),
        ("epochs: [", UsageError, "is not the configuration of a run"),
        ("!!python/object/apply:os.abort []", UsageError, "is not the configuration of a run"),
        ("{epochs: 3, epochs: 4}", UsageError, "'epochs' is given twice"),
        ("learning_rate: one", UsageError, "'learning_rate' is 'one'"),
        ("{recipe: [{rest: true, scheme: int8}], scheme: int4}", UsageError, "no scheme of its own, got scheme 'int4'"),
        ("{recipe: [{rest: true, scheme: ternery}]}", UsageError, r"r\.yaml: recipe: rule 1: .*Did you mean 'ternary'"),
        ("recipe: {rest: true}", UsageError, "a recipe is a list of rules"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(kind, match=message):
        read_run(tmp_path / "r.yaml")


def test_a_run_by_name_needs_its_objects_again(tmp_path: Path) -> None:
    first = quick(tmp_path / "run", epochs=1)
    written = read_run(first.folder / CONFIGURATION)
    assert (written.model, written.data, written.batch_size, written.learning_rate) == (None, None, 8, 2e-3)
    with pytest.raises(UsageError, match="model was an object of a program"):
        train(written, out=tmp_path / "again")
    again = train(written, model=net(), data=blobs(), out=tmp_path / "again", progress=False)
    assert same_bits(first.folder, again.folder)


# ---- schedules ----


def rates(name: str, steps: int = 30, warmup: float | None = 0.0, **options: Any) -> list[float]:
    schedule = get_schedule(name, options)
    return [schedule.at(step, steps, warmup) for step in range(steps + 1)]


def test_a_schedule_is_registered_once() -> None:
    with pytest.raises(RegistrationError, match="schedule 'cosine' is registered already"):
        schedule("cosine")(float)


def torch_rates(make: Any, steps: int = 30) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_those_of_torch() -> None:
    from torch.optim import lr_scheduler as s

    # a warm-up of no steps is one of a single step at the full rate, after which the schedule begins
    assert rates("cosine", 31)[1:-1] == pytest.approx(torch_rates(lambda o: s.CosineAnnealingLR(o, 30)))
    assert rates("linear", 31)[1:-1] == pytest.approx(torch_rates(lambda o: s.LinearLR(o, 1.0, 0.0, 30)))
    assert rates("step", 31)[1:-1] == pytest.approx(torch_rates(lambda o: s.StepLR(o, 10, 0.1)))
    assert rates("constant") == [1.0] * 31
    one_cycle = torch_rates(lambda o: s.OneCycleLR(o, 1.0, total_steps=31, cycle_momentum=False), 31)
    assert rates("one-cycle", 30, None, rise=8.3 / 30) == pytest.approx(one_cycle)  # torch rises to step 0.3 31 - 1
    assert list_schedules() == ["cosine", "linear", "step", "constant", "one-cycle"]


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "constant"])
def test_a_schedule_begins_after_its_warm_up(name: str) -> None:
    found = rates(name, 100, 0.1)
    assert found[:11] == pytest.approx([*(n / 10 for n in range(1, 11)), 1.0])
    assert found[10:] == sorted(found[10:], reverse=True)


def test_the_optimizer_learns_at_the_rates_of_the_schedule(tmp_path: Path) -> None:
    steps = Steps()
    quick(tmp_path, callbacks=[steps], schedule="linear", learning_rate=0.5, warmup=0.25, schedule_options={"end": 0.5})
    schedule = get_schedule("linear", {"end": 0.5})
    assert steps.rates == pytest.approx([0.5 * schedule.at(step, 2 * STEPS, 0.25) for step in range(2 * STEPS)])
    assert steps.rates[3] == 0.5  # the warm-up is 4 steps


# ---- steps ----


def test_modules_say_which_parameters_learn_at_which_rate(tmp_path: Path) -> None:
    """SGD's first step is rate x factor x gradient, and the decay where a module says so."""

    class Slow(nn.Linear, HasParameterGroups):
        def parameter_groups(self) -> tuple[ParameterGroup, ...]:
            return (ParameterGroup((self.weight,), decays=True, rate=0.1), ParameterGroup((self.bias,), rate=0.0))

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), Slow(16, 3))

    first = {name: tensor.clone() for name, tensor in make().state_dict().items()}
    gradients: dict[str, torch.Tensor] = {}

    class First(Callback):
        def on_before_optimizer_step(self, trainer: Any, learner: Any, optimizer: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in learner.model.named_parameters()})

    options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.5, "learning_rate": 0.2, "schedule": "constant"}
    quick(tmp_path, make(), scheme="float", epochs=1, batch_size=64, warmup=0.0, callbacks=[First()], **options)
    saved = load_file(weights_file(tmp_path))
    expected = first["1.weight"] - 0.2 * 0.1 * (gradients["1.weight"] + 0.5 * first["1.weight"])
    torch.testing.assert_close(saved["1.weight"], expected)
    assert torch.equal(saved["1.bias"], first["1.bias"])


def test_a_step_in_parts_is_the_step(tmp_path: Path) -> None:
    """The same samples in the same steps, and no batch norm, so that the sums of gradients are equal."""
    whole, parts = Steps(), Steps()
    one = quick(tmp_path / "1", scheme="float", augment=False, callbacks=[whole])
    two = quick(tmp_path / "2", scheme="float", augment=False, callbacks=[parts], accumulate=4)
    assert len(whole.weights) == 2 * STEPS
    assert len(parts.weights) == 8 * STEPS
    torch.testing.assert_close(parts.weights[3::4], whole.weights, rtol=1e-4, atol=1e-5)
    assert torch.equal(parts.weights[1], parts.weights[0])  # nothing is learned within a step
    assert [row["train_loss"] for row in two.history] == pytest.approx([row["train_loss"] for row in one.history])
    with pytest.raises(UsageError, match="batch size 8 does not divide among 1 processes and 3 parts"):
        quick(tmp_path / "3", accumulate=3)


def test_clipping_bounds_the_norm_of_a_step(tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "learning_rate": 1.0}
    for clip in (None, 0.01):
        steps = Steps()
        quick(tmp_path / str(clip), scheme="float", epochs=1, callbacks=[steps], clip=clip, warmup=0.0, **options)
        moved = [float((b - a).norm()) for a, b in zip(steps.weights, steps.weights[1:], strict=False)]
        assert (max(moved) < 0.0101) == (clip is not None)


def test_the_average_is_the_result(tmp_path: Path) -> None:
    """What is saved and tested is the formula over every step, from the weights of the start."""
    steps, module = Steps(), net()
    result = quick(tmp_path, module, scheme="float", callbacks=[steps], ema=0.6)
    expected = torch.cat([p.flatten() for p in net().state_dict().values()])
    for number, weights in enumerate(steps.weights):
        decay = min(0.6, (1 + number) / (10 + number))
        assert averaged_decay(0.6, number) == decay
        expected = decay * expected + (1 - decay) * weights
    saved = load_file(weights_file(tmp_path))
    got = torch.cat([saved[name].flatten() for name in net().state_dict()])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(got, steps.weights[-1], atol=1e-4)
    images, labels = blobs().test.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(result.load(net()).model(images), labels).item()
        assert torch.equal(result.load(net()).model(images), module(images))
    assert loss == pytest.approx(result.history[-1]["test_loss"], rel=1e-6)


def test_mixed_precision_trains_in_bfloat16_and_tests_in_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    module = net()
    module[4].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    result = quick(tmp_path, module, scheme="float", epochs=1, precision="bf16-mixed")
    assert seen[1 : 1 + STEPS] == [torch.bfloat16] * STEPS or seen[:STEPS] == [torch.bfloat16] * STEPS
    assert {tensor.dtype for tensor in load_file(weights_file(tmp_path)).values()} == {torch.float32}
    images, labels = blobs().test.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(result.load(net()).model(images), labels).item()
    assert loss == pytest.approx(result.history[-1]["test_loss"], rel=1e-6)


def test_a_compiled_model_learns_the_same_in_one_graph(tmp_path: Path) -> None:
    plain, compiled = Steps(), Steps()
    quick(tmp_path / "plain", epochs=1, callbacks=[plain])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    quick(tmp_path / "compiled", epochs=1, callbacks=[compiled], compile=True)
    torch.testing.assert_close(compiled.weights, plain.weights, rtol=1e-5, atol=1e-6)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1  # none: it ran in eager mode


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated"
)  # torch's own tracer does
@pytest.mark.parametrize("scheme", ["pow2", "binary"])
def test_a_started_network_is_one_graph_in_training(scheme: str) -> None:
    example = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model.extend([nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)])
    quantize(model, scheme, example=example).train()
    model(example)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(example)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


# ---- which epoch ----


def test_the_best_epoch_is_kept_and_patience_ends_a_run(tmp_path: Path) -> None:
    class Spoil(Callback):
        """From the third epoch on the model is wrong about everything."""

        def on_validation_start(self, trainer: Any, learner: Any) -> None:
            if trainer.current_epoch >= 2:
                with torch.no_grad():
                    learner.model[-1].bias.copy_(torch.tensor([-1e3, -1e3, -1e3 * (trainer.current_epoch % 2)]))

    options = {"epochs": 9, "learning_rate": 0.02, "scheme": "float", "callbacks": [Spoil()]}
    result = quick(tmp_path / "best", keep="best", patience=3, **options)
    accuracies = [row["validation_accuracy"] for row in result.history]
    best = best_epoch(result.history, result.metric)
    assert best < 2
    assert len(accuracies) == best + 1 + 3 < 9
    saved = load_checkpoint(tmp_path / "best", net())
    assert saved.metrics["validation_accuracy"] == accuracies[best]
    assert result.accuracy == saved.metrics["accuracy"] == right_of_test(saved.model)
    assert saved.config.training["held_out"] == 0.1  # the share that is held out where a run chooses and says none
    assert not any(name.startswith("test_") for name in result.history[0])
    resumed = quick(tmp_path / "best", keep="best", patience=3, resume=True, **options)
    assert resumed == result  # it is over
    last = quick(tmp_path / "last", patience=3, **options)
    assert last.history[-1]["validation_accuracy"] < accuracies[best]
    assert last.accuracy == right_of_test(last.load(net()).model) < result.accuracy


def right_of_test(model: nn.Module) -> float:
    images, labels = blobs().test.tensors  # type: ignore[attr-defined]
    return float((model(images).argmax(1) == labels).double().mean())


def test_what_is_held_out_is_not_trained_on_and_is_the_same_for_a_seed(tmp_path: Path) -> None:
    seen: list[set[tuple[float, ...]]] = [set(), set()]

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, learner: Any, batch: Any, *_: Any) -> None:
            seen[0] |= {tuple(image.flatten().tolist()) for image in batch[0]}

        def on_validation_batch_start(self, trainer: Any, learner: Any, batch: Any, *_: Any) -> None:
            seen[1] |= {tuple(image.flatten().tolist()) for image in batch[0]}

    quick(tmp_path, held_out=0.25, epochs=3, augment=False, callbacks=[Watch()])
    trained, held = seen
    images = {tuple(image.flatten().tolist()) for image, _ in blobs().train}  # type: ignore[attr-defined]
    assert (len(held), trained & held, trained | held <= images) == (16, set(), True)
    parts = [hold_out(blobs(), 0.25, seed)[1].indices.tolist() for seed in (0, 0, 1)]  # type: ignore[attr-defined]
    assert parts[0] == parts[1] != parts[2]
    part = Part(load_data("digits").train, np.array([5, 3]))
    assert part.batch is not None
    images_read, labels_read = part.batch([1, 0])
    whole = load_data("digits").train
    assert torch.equal(images_read, torch.stack([whole[3][0], whole[5][0]]))
    assert labels_read.tolist() == part.labels[[1, 0]].tolist() == [whole[3][1], whole[5][1]]  # type: ignore[index]


@pytest.mark.parametrize("share", [0.001, 0.999, 1.0, 0.0])
def test_a_part_of_nothing_or_of_all_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(DataError if 0 < share < 1 else UsageError, match="share"):
        quick(tmp_path, held_out=share)


def test_of_equal_epochs_the_first_is_the_best() -> None:
    metric = Metric("accuracy")
    rows = [
        {"test_accuracy": a, "test_loss": b} for a, b in ((0.5, 1.0), (0.6, 1.0), (0.6, 0.9), (0.6, 0.9), (0.1, 0.1))
    ]
    assert best_epoch(rows, metric) == 2
    assert [is_over(rows, metric, patience) for patience in (1, 2, 3, None)] == [True, True, False, False]
    assert not is_over([], metric, 1)


# ---- resume ----

EVERYTHING = {
    "loss": "cross-entropy + 0.5*moco(embeddings='1', teacher_embeddings='1', length=20)",
    "ema": 0.9, "accumulate": 2, "clip": 0.5, "schedule": "one-cycle", "optimizer": "sgd", "epochs": 3, "keep": "best",
}  # fmt: skip


def test_a_run_resumes_in_the_middle_of_an_epoch_to_the_same_bits(tmp_path: Path) -> None:
    """With dropout, augmentation, an average, the queue of a loss, and steps in parts; the crash is two steps after the
    last save."""
    options = {**EVERYTHING, "teacher": net()}
    whole = quick(tmp_path / "whole", net(0.3), **options)
    with pytest.raises(RuntimeError, match="power"):
        quick(tmp_path / "broken", net(0.3), save_every=3, callbacks=[Steps(stop=2 * STEPS + 10)], **options)
    resumed = quick(tmp_path / "broken", net(0.3), save_every=3, resume=True, **options)
    assert same_bits(whole.folder, resumed.folder)
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_ctrl_c_saves_the_state_of_the_step(tmp_path: Path) -> None:
    whole, seen = quick(tmp_path / "whole", net(0.3)), Steps(interrupt=STEPS + 2)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "broken", net(0.3), callbacks=[seen])
    assert seen.count == STEPS + 3  # the step in which it came was completed
    rest = Steps()
    resumed = quick(tmp_path / "broken", net(0.3), callbacks=[rest], resume=True)
    assert rest.count == STEPS - 3
    assert same_bits(whole.folder, resumed.folder)


def test_a_resume_with_another_configuration_names_each_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(tmp_path, epochs=1)
    with pytest.raises(
        CheckpointError, match=r"its learning_rate was 0.002 and now is 0.1; its seed was 0 and now is 4"
    ):
        quick(tmp_path, epochs=1, learning_rate=0.1, seed=4, resume=True)
    quick(tmp_path, epochs=2, resume=True, progress=True)
    assert "resumed, its epochs was 1 and now is 2" in capsys.readouterr().err


# ---- numbers that are not finite ----


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(tmp_path: Path) -> None:
    class Root(nn.Module):
        """NaN where its input is negative: from the second epoch on."""

        offset = 10.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.offset).sqrt()

    class Lower(Callback):
        def on_train_epoch_start(self, trainer: Any, learner: Any) -> None:
            learner.model[1].offset = 10.0 - 1e4 * trainer.current_epoch

    module = nn.Sequential(nn.Flatten(), Root(), nn.Linear(16, 3))
    message = rf"loss is nan in step {STEPS + 1} \(epoch 2\): layer '1' is the first that gives NaN.*clip=1.0"
    with pytest.raises(TrainingError, match=message):
        quick(tmp_path, module, scheme="float", epochs=3, callbacks=[Lower()])
    loaded = load_checkpoint(tmp_path, nn.Sequential(nn.Flatten(), Root(), nn.Linear(16, 3)))
    assert loaded.metrics["epochs"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in loaded.model.state_dict().values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Break(Callback):
        def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
            if trainer.global_step == STEPS + 3:
                with torch.no_grad():
                    learner.model[1].bias[0] = math.inf

    quick(tmp_path, epochs=1, scheme="float")
    before = (tmp_path / STATE).read_bytes()
    options = {"epochs": 2, "scheme": "float", "save_every": STEPS + 3, "resume": True}
    with pytest.raises(TrainingError, match=rf"'1.bias' holds NaN or infinity after step {STEPS + 3}"):
        quick(tmp_path, callbacks=[Break()], **options)
    assert (tmp_path / STATE).read_bytes() == before
    assert load_checkpoint(tmp_path, net()).metrics["epochs"] == 1
