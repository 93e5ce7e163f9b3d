"""Tasks: each trains, is scored, resumes and is read again; its score and its chance have the values of their formulas;
data and losses that do not fit are refused by name."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import sklearn.neighbors
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from tiny_tasks import EXAMPLES
from torch import nn

from subbyte.errors import DataError, RegistrationError, UnknownNameError, UsageError
from subbyte.models import get_task, list_tasks, load_checkpoint, train
from subbyte.models.checkpoint import weights_file
from subbyte.models.tasks import Batch, Episode, Task, task
from subbyte.models.train.batches import Episodes


class StopAt(Callback):
    """Break off as a crash would, in front of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


def run(name: str, out: Path, **more: Any) -> Any:
    example = EXAMPLES[name]
    torch.manual_seed(0)
    options = {"task_options": example.options, "learning_rate": 0.03, "batch_size": None, "progress": False}
    network = example.network()
    return train(network, example.data(name), "int8", example.epochs, out, **{**options, **more})


@pytest.mark.parametrize("name", list_tasks())
def test_a_task_trains_resumes_and_is_read(tmp_path: Path, name: str) -> None:
    """Its score is above chance, that of the loaded model, and that of a run which broke off in an epoch."""
    whole, data, made = run(name, tmp_path / "whole"), EXAMPLES[name].data(name), get_task(name)
    metric = whole.metric
    assert next(iter(whole.history[0])) == "epoch"
    assert whole.history[-1][f"test_{metric.name}"] == whole.score
    inputs, targets = data.test_arrays()
    chance = get_task(name, **{**data.task_options, **EXAMPLES[name].options}).chance(inputs, targets)
    assert metric.better(whole.score) > metric.better(chance), (whole.score, chance)

    loaded = load_checkpoint(whole.folder, EXAMPLES[name].network())
    assert (loaded.config.task, loaded.config.shape) == (name, data.shape)
    assert loaded.metrics[metric.name] == whole.score
    again = get_task(name, **loaded.config.task_options)
    score = again.score(data.shape)
    with torch.no_grad():
        score.add(loaded.model(torch.from_numpy(inputs)).numpy(), targets)
    assert score.result() == pytest.approx(whole.score, abs=1e-6)
    assert again.fits(tuple(loaded.model(torch.from_numpy(inputs[:1])).shape[1:]), data)
    assert made.gives

    with pytest.raises(RuntimeError, match="power"):
        run(name, tmp_path / "broken", save_every=2, callbacks=[StopAt(5)])
    resumed = run(name, tmp_path / "broken", save_every=2, resume=True)
    tensors = [load_file(weights_file(one.folder)) for one in (whole, resumed)]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


# ---- the values of scores ----


def score_of(task: Task, outputs: Any, targets: Any, shape: tuple[int, ...] = (4,)) -> float:
    """In two batches, and merged of two processes: the same."""
    outputs, targets = np.asarray(outputs, np.float32), np.asarray(targets)
    whole, parts = task.score(shape), [task.score(shape), task.score(shape)]
    for part, output, target in zip(parts, np.split(outputs, [1]), np.split(targets, [1]), strict=True):
        whole.add(output, target)
        part.add(output, target)
    merged = task.score(shape)
    for part in parts:
        merged.merge(part.state())
    assert merged.result() == whole.result()
    return whole.result()


def test_scores_have_the_values_of_their_formulas() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (9, 4))
    scores = random.normal(0, 1, (9, 4))
    f1 = sklearn.metrics.f1_score(labels, scores > 0, average="micro")
    assert score_of(get_task("multi-label"), scores, labels) == pytest.approx(f1)
    y, guess = random.normal(0, 1, (9, 2)).astype(np.float32), random.normal(0, 1, (9, 2)).astype(np.float32)
    r2 = sklearn.metrics.r2_score(y, guess, multioutput="variance_weighted")
    assert score_of(get_task("regression"), guess, y) == pytest.approx(r2)
    assert score_of(get_task("forecasting"), guess, y) == pytest.approx(((y - guess) ** 2).mean())
    pixels, logits = random.integers(0, 3, (4, 5, 6)), random.normal(0, 1, (4, 3, 5, 6))
    iou = sklearn.metrics.jaccard_score(pixels.ravel(), logits.argmax(1).ravel(), average="macro")
    assert score_of(get_task("segmentation"), logits, pixels, (1, 5, 6)) == pytest.approx(iou)
    tokens, logits = random.integers(0, 7, (4, 5)), random.normal(0, 3, (4, 5, 7))
    tokens[0, 1:3] = -100
    nats = nn.functional.cross_entropy(torch.tensor(logits).flatten(0, 1), torch.tensor(tokens).flatten())
    assert score_of(get_task("language-modelling"), logits, tokens) == pytest.approx(float(nats) / np.log(2), rel=1e-5)
    series = logits.swapaxes(1, 2)  # [N, K, L]
    right = (logits.argmax(-1) == tokens)[tokens >= 0].mean()
    assert score_of(get_task("sequence-labelling"), series, tokens, (2, 5)) == pytest.approx(right)
    assert score_of(get_task("sequence-labelling"), logits, tokens, (5,)) == pytest.approx(right)
    z, label = random.normal(0, 1, (30, 3)), random.integers(0, 4, 30)
    near = sklearn.neighbors.NearestNeighbors(n_neighbors=2, metric="cosine").fit(z).kneighbors(z)[1][:, 1]
    for name in ("metric-learning", "contrastive"):
        assert score_of(get_task(name), z, label) == pytest.approx((label[near] == label).mean())


def test_few_shot_episodes_are_those_of_prototypes() -> None:
    """Embeddings that are one point for a class are told apart; ones that say nothing are not."""
    label = np.arange(60) % 6
    few = get_task("few-shot", ways=3, shots=2, queries=4)
    assert score_of(few, np.eye(6)[label], label) == 1
    assert score_of(few, np.random.default_rng(0).normal(0, 1, (60, 4)), label) == pytest.approx(1 / 3, abs=0.1)
    batch = Batch(torch.zeros(18, 1), torch.arange(3).repeat_interleave(6))
    z = torch.randn(18, 4)
    logits = few.outputs(z, batch).logits
    prototypes = torch.stack([z[0:2].mean(0), z[6:8].mean(0), z[12:14].mean(0)])
    assert torch.allclose(logits[4:8], -(torch.cdist(z[8:12], prototypes) ** 2), atol=1e-5)
    assert few.targets(batch).label.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_chance_is_the_best_that_ignores_the_sample() -> None:
    random = np.random.default_rng(1)
    labels = (random.random((50, 3)) < [0.9, 0.5, 0.1]).astype(np.int64)
    answers = [np.array(yes) for yes in itertools.product([0, 1], repeat=3)]
    best = max(sklearn.metrics.f1_score(labels, np.tile(a, (50, 1)), average="micro", zero_division=0) for a in answers)
    nothing = np.zeros((50, 1), np.float32)
    assert get_task("multi-label").chance(nothing, labels) == pytest.approx(best)
    assert get_task("classification").chance(nothing, np.array([0, 0, 1, -1])) == pytest.approx(2 / 3)
    tokens = np.array([[0, 0, 1, 2]])
    assert get_task("language-modelling").chance(nothing, tokens) == pytest.approx(1.5)  # bits, of 1/2, 1/4, 1/4
    pixels = random.integers(0, 3, (4, 5, 6))
    constant = [np.moveaxis(np.eye(3)[np.full_like(pixels, k)], -1, 1) for k in range(3)]
    iou = max(score_of(get_task("segmentation"), one, pixels, (1, 5, 6)) for one in constant)
    assert get_task("segmentation").chance(nothing, pixels) == pytest.approx(iou)
    waves = random.normal(0, 1, (6, 2, 5)).astype(np.float32)
    ahead = random.normal(0, 1, (6, 2, 3)).astype(np.float32)
    naive = ((waves[:, :, -1:] - ahead) ** 2).mean()
    assert get_task("forecasting", horizon=3).chance(waves, ahead) == pytest.approx(naive)
    label = np.repeat([0, 1], [3, 2])  # (3 * 2 / 4 + 2 * 1 / 4) / 5 of the neighbours are of the same class
    assert get_task("metric-learning").chance(nothing, label) == pytest.approx(0.4)


def test_episodes_have_samples_of_each_class_and_differ_between_processes() -> None:
    labels = np.arange(40) % 4
    order = Episodes(labels, Episode(3, 4), seed=1, world=2)
    drawn = [labels[np.array(one)].reshape(3, 4) for one in order]
    assert len(drawn) == len(order) == 1
    for classes in drawn:
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == 3
    assert (
        list(order)
        == list(Episodes(labels, Episode(3, 4), seed=1, world=2))
        != list(Episodes(labels, Episode(3, 4), seed=1, world=2, rank=1))
    )
    with pytest.raises(DataError, match="an episode has 11 samples of 3 classes, but 0 of 4 classes have so many"):
        Episodes(labels, Episode(3, 11))


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("task", "of", "says"),
    [
        ("classification", "regression", "expected one label, an integer, for each sample, got targets float32"),
        ("regression", "classification", "expected real values for each sample .4 in all., got targets int64"),
        ("multi-label", "classification", "expected 4 labels of 0 and 1, integers, for each sample, got targets int64"),
        ("segmentation", "classification", r"expected images \[C, H, W\], got inputs \[6\]"),
        ("language-modelling", "classification", r"expected inputs of tokens, int64 \[T\], got inputs float32"),
        ("sequence-labelling", "multi-label", r"expected 6 labels, integers: one for each position, got targets int64"),
        ("forecasting", "regression", r"expected inputs \[C, L\] and targets"),
        ("contrastive", "classification", "expected an augmentation, which makes the views, got data without one"),
        ("few-shot", "multi-label", "expected one label, an integer, for each sample, got targets"),
        ("metric-learning", "segmentation", "expected one label, an integer, for each sample, got targets"),
    ],
)
def test_a_task_refuses_data_of_another(tmp_path: Path, task: str, of: str, says: str) -> None:
    example = EXAMPLES[of]
    with pytest.raises(DataError, match=f"data set 'made' does not fit task '{task}': {says}.*the data says '{of}'"):
        train(example.network(), example.data(of), "int8", 1, tmp_path / "run", task=task, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "loss", "says"),
    [
        ("classification", "supcon(embeddings=1)", "'supcon' needs embeddings .* views"),
        ("classification", "bce", "'binary-cross-entropy' needs scores"),
        ("multi-label", "ce", "'cross-entropy' needs logits"),
        ("regression", "ce", "'cross-entropy' needs labels"),
        ("metric-learning", "clip", "'clip' needs embeddings .* views"),
        ("language-modelling", "huber", "'huber' needs"),
    ],
)
def test_a_loss_that_the_task_cannot_feed_is_refused(tmp_path: Path, task: str, loss: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run(task, tmp_path / "run", loss=loss)
    assert not (tmp_path / "run").exists()


def test_networks_of_other_outputs_are_refused(tmp_path: Path) -> None:
    data = EXAMPLES["segmentation"].data("segmentation")
    with pytest.raises(UsageError, match=r"the model gives \[2, 3\] for 2 inputs, expected \[2, 3, 4, 4\] for task"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), data, "int8", 1, tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match=r"the teacher gives \[2, 3\] for 2 inputs, expected \[2, 4\] for task"):
        run("classification", tmp_path / "run", teacher=nn.Linear(6, 3), loss="kd")
    with pytest.raises(UsageError, match="loss 'huber' learns nothing from a teacher"):
        run("regression", tmp_path / "run", teacher=nn.Linear(6, 2))
    assert not (tmp_path / "run").exists()


def test_supcon_learns_from_views_and_labels(tmp_path: Path) -> None:
    result = run("contrastive", tmp_path / "run", loss="supcon")
    assert result.score > 0.6  # chance is 0.24
    assert "test_loss" not in result.history[0]
    with pytest.raises(UsageError, match="scored by neighbour accuracy, not by accuracy: read `score`"):
        _ = result.accuracy


def test_names_and_options_of_tasks_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'forecasting'"):
        get_task("forcasting")
    with pytest.raises(UsageError, match="task 'forecasting' has no option 'steps'; its options: horizon"):
        get_task("forecasting", steps=3)
    with pytest.raises(UsageError, match="option 'horizon' is 0, expected a number in"):
        get_task("forecasting", horizon=0)


def test_an_incomplete_task_is_refused() -> None:
    complete = type(get_task("classification"))
    part = {name: getattr(complete, name) for name in ("gives", "loss", "metric", "__doc__")}

    def refused(name: str = "mine", base: type = complete, **changes: Any) -> str:
        made = dataclass(frozen=True)(type("Mine", (base,), {**part, **changes}))
        with pytest.raises(RegistrationError, match=r"docs/add-a-task\.md") as error:
            task(name)(made)
        return str(error.value)

    assert "must be lower case words" in refused("My task")
    assert "registered already" in refused("forecasting")
    assert "does not define chance, check, outputs, score, targets" in refused(base=Task)
    assert "gives nothing" in refused(gives=frozenset())
    assert "gives ['label2']" in refused(gives=frozenset({"logits", "label2"}))
    assert "its loss 'huber' cannot be: loss 'huber' needs" in refused(loss="huber")
    assert "not a Metric" in refused(metric="accuracy")
    assert "no summary" in refused(__doc__="")
    assert "mine" not in list_tasks()
