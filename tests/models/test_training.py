"""Training: accuracy on real digits, resuming to the same bits, teachers, own modules and data, errors."""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import TensorDataset

from subbyte.errors import CheckpointError, UnknownNameError, UsageError, WriteError
from subbyte.models import Data, from_datasets, load_checkpoint, load_data, train
from subbyte.models.checkpoint import weights_file
from subbyte.models.checkpoint_files import LOG, STATE
from subbyte.models.data import ImageTensors
from subbyte.models.quant import quantized_layers
from subbyte.models.train.run import CONFIGURATION
from subbyte.models.train.state import TrainingStateIO


class StopAt(Callback):
    """Break off as a crash would, at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("the power went out")


@pytest.fixture(scope="module")
def few_digits() -> Data:
    """A fifth of the digits, with an augmentation, for tests of the machinery."""
    digits = load_data("digits")
    assert isinstance(digits.train, ImageTensors)
    from subbyte.models.data import shift_and_flip

    part = ImageTensors(digits.train.pixels[:256], digits.train.labels[:256], digits.train.normalization)
    augment = shift_and_flip(1, flip=False)
    return Data("digits", part, digits.test, (1, 8, 8), 10, normalization=digits.normalization, augment=augment)


def quick(data: Any, folder: Path, scheme: str = "ternary", epochs: int = 3, **options: Any) -> Any:
    options = {"model_options": {"hidden": [32]}, "progress": False, "accelerator": "cpu", **options}
    return train("mlp", data, scheme, epochs, folder, **options)


# ---- accuracy ----


@pytest.mark.parametrize("scheme", ["float", "ternary"])
@pytest.mark.parametrize(("model", "epochs"), [("mlp", 4), ("resnet8", 2)])
def test_digits_are_learned(tmp_path: Path, model: str, scheme: str, epochs: int) -> None:
    result = train(model, "digits", scheme, epochs, tmp_path, progress=False, accelerator="cpu")
    assert result.accuracy > 0.9
    assert len(result.history) == epochs
    loaded = result.load()
    digits = load_data("digits")
    images, labels = digits.test.batch(slice(None))  # type: ignore[attr-defined]
    with torch.no_grad():
        right = (loaded.model(images).argmax(-1) == labels).float().mean().item()
    assert right == pytest.approx(result.accuracy)
    assert loaded.metrics["accuracy"] == pytest.approx(result.accuracy)
    assert (len(quantized_layers(loaded.model)) > 0) == (scheme == "ternary")


def test_a_binary_network_learns_and_has_its_own_form(tmp_path: Path) -> None:
    result = train("resnet8", "digits", "binary", 3, tmp_path, progress=False, accelerator="cpu", learning_rate=5e-3)
    assert result.accuracy > 0.8
    assert result.load().config.model_options == {"shortcut": "convolution", "activation": "prelu"}


# ---- resume ----


def test_a_resumed_run_gives_the_same_bits(tmp_path: Path, few_digits: Data) -> None:
    whole = quick(few_digits, tmp_path / "whole", epochs=4)
    with pytest.raises(RuntimeError, match="power"):
        quick(few_digits, tmp_path / "broken", epochs=4, callbacks=[StopAt(2)])
    assert load_checkpoint(tmp_path / "broken").metrics["epochs"] == 2
    resumed = quick(few_digits, tmp_path / "broken", epochs=4, resume=True)
    expected = load_file(weights_file(whole.folder))
    got = load_file(weights_file(resumed.folder))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_resuming_a_finished_run_trains_no_more_and_longer_goes_on(tmp_path: Path, few_digits: Data) -> None:
    first = quick(few_digits, tmp_path, epochs=1)
    again = quick(few_digits, tmp_path, epochs=1, resume=True)
    assert again == first
    longer = quick(few_digits, tmp_path, epochs=2, resume=True)
    assert [row["epoch"] for row in longer.history] == [1, 2]


def test_resume_with_nothing_to_resume_starts(tmp_path: Path, few_digits: Data) -> None:
    assert len(quick(few_digits, tmp_path, epochs=1, resume=True).history) == 1


def test_resuming_another_run_is_refused(tmp_path: Path, few_digits: Data) -> None:
    quick(few_digits, tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match="its scheme was 'ternary' and now is 'int8'"):
        quick(few_digits, tmp_path, "int8", epochs=2, resume=True)
    with pytest.raises(CheckpointError, match="model_options"):
        quick(few_digits, tmp_path, epochs=2, resume=True, model_options={"hidden": [33]})


def test_options_given_as_tuples_resume(tmp_path: Path, few_digits: Data) -> None:
    """JSON knows lists alone."""
    quick(few_digits, tmp_path, epochs=1, model_options={"hidden": (32,)})
    assert len(quick(few_digits, tmp_path, epochs=2, resume=True, model_options={"hidden": (32,)}).history) == 2


# ---- a folder that is taken ----


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_trained_model_is_not_replaced_unasked(tmp_path: Path, few_digits: Data) -> None:
    quick(few_digits, tmp_path, epochs=2)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"a ternary mlp \(after epoch 2, .*resume=True.*overwrite=True.*another out"):
        quick(few_digits, tmp_path, epochs=1)
    with pytest.raises(UsageError, match="ask for one of them"):
        quick(few_digits, tmp_path, epochs=1, resume=True, overwrite=True)
    assert contents(tmp_path) == before
    assert len(quick(few_digits, tmp_path, "int8", epochs=1, overwrite=True).history) == 1
    assert load_checkpoint(tmp_path).config.scheme == "int8"


def test_a_checkpoint_without_its_state_is_not_replaced_by_resuming(tmp_path: Path, few_digits: Data) -> None:
    """Such as one that was copied from elsewhere: there is nothing to go on from, and it would be lost."""
    quick(few_digits, tmp_path, epochs=1)
    (tmp_path / STATE).unlink()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=f"without the {STATE} to go on from"):
        quick(few_digits, tmp_path, epochs=1, resume=True)
    (tmp_path / "checkpoint.json").write_bytes(b"{")
    with pytest.raises(UsageError, match="a checkpoint, damaged or unfinished"):
        quick(few_digits, tmp_path, epochs=1)
    (tmp_path / "checkpoint.json").write_bytes(before["checkpoint.json"])
    assert contents(tmp_path) == before


def test_what_is_replaced_is_never_resumed(tmp_path: Path, few_digits: Data) -> None:
    """A run that stops before its first checkpoint leaves the old model, but not the old state beside it."""
    quick(few_digits, tmp_path, epochs=2)
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match="power"):
        quick(few_digits, tmp_path, epochs=4, overwrite=True, callbacks=[StopAt(0)])
    del before[STATE]
    assert contents(tmp_path) == before
    with pytest.raises(UsageError, match="to go on from"):
        quick(few_digits, tmp_path, epochs=4, resume=True)


def test_a_damaged_or_hostile_state_is_refused(tmp_path: Path, few_digits: Data) -> None:
    quick(few_digits, tmp_path, epochs=1)
    whole = (tmp_path / STATE).read_bytes()
    witness = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (witness,))

    with safe_open(tmp_path / STATE, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for content, words in (
        (whole[:-10], "truncated"),
        (b"", "truncated"),
        (pickle.dumps(Attack()), "a header of"),
        (weights_file(tmp_path).read_bytes(), "of another program"),
        (save(tensors, {**metadata, "tree": '{"list": []}'}), "holds a list, expected a dict"),
        (save(tensors, {**metadata, "tree": '{"dict": []}'}), "another model or damaged"),
        (save(tensors, {**metadata, "tree": "9" * 5000}), "a number of 5000 characters"),
        (save(tensors, {**metadata, "tree": "[" * 100_000}), "damaged"),
        (save({name: torch.zeros(3) for name in tensors}, metadata), "another model or damaged"),
        (
            save({n: torch.zeros(3) if "exp_avg" in n else t for n, t in tensors.items()}, metadata),
            r"exp_avg of .* is \[3\]",
        ),
    ):
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"(?s)training.safetensors: .*{words}.*train again without resume"):
            quick(few_digits, tmp_path, epochs=2, resume=True)
    assert not witness.exists()


def test_training_state_keeps_types_and_bits(tmp_path: Path) -> None:
    state = {
        "epoch": 3,
        "nested": [{"state": {0: {"step": torch.tensor(5.0), "betas": (0.9, 0.999)}}}, None, True, "text", 1.5],
        "tensors": {"a": torch.randn(3, 2).t(), "b": torch.arange(3)},
    }
    TrainingStateIO().save_checkpoint(state, tmp_path / "s")
    back = TrainingStateIO().load_checkpoint(tmp_path / "s")
    assert back["nested"][0]["state"][0]["betas"] == (0.9, 0.999)
    assert torch.equal(back["tensors"]["a"], state["tensors"]["a"])  # type: ignore[index]
    assert back["nested"][1:] == [None, True, "text", 1.5]
    with pytest.raises(CheckpointError, match="neither data nor tensor"):
        TrainingStateIO().save_checkpoint({"x": lambda: 0}, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_random_numbers(
    tmp_path: Path, few_digits: Data
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = quick(few_digits, tmp_path / "1", epochs=1, seed=4)
    assert torch.equal(torch.rand(3), expected)
    two = quick(few_digits, tmp_path / "2", epochs=1, seed=4)
    other = quick(few_digits, tmp_path / "3", epochs=1, seed=5)
    first, second, third = (load_file(weights_file(r.folder)) for r in (one, two, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Two processes that share each batch have the losses of one, up to the order of float sums; so have the average of
    the weights and the queue of a loss."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "import torch\n"
        "from subbyte.models import create, train\n"
        "torch.manual_seed(1)\n"
        "teacher = create('mlp', channels=1, size=(8, 8), hidden=(16,))\n"
        "loss = \"cross-entropy + 0.1*moco(embeddings='1', teacher_embeddings='1', length=128)\"\n"
        "train('mlp', 'digits', 'ternary', 2, sys.argv[1], accelerator='cpu', devices=int(sys.argv[2]), ema=0.9,\n"
        "      strategy='ddp' if sys.argv[2] == '2' else 'auto', learning_rate=0.01, progress=False, augment=False,\n"
        "      loss=loss, teacher=teacher, model_options={'hidden': (16,)}, batch_size=64)\n"
    )
    curves, averages = [], []
    for devices in ("1", "2"):
        folder = tmp_path / devices
        subprocess.run(
            [sys.executable, str(script), str(folder), devices], check=True, capture_output=True, timeout=600
        )
        with (folder / LOG).open(newline="") as stream:
            curves.append([float(r[name]) for r in csv.DictReader(stream) for name in ("train_loss", "test_loss")])
        averages.append(load_file(weights_file(folder)))
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[0][2] < 0.9 * curves[0][0]
    for name, expected in averages[0].items():
        torch.testing.assert_close(averages[1][name], expected, rtol=0.02, atol=2e-3)


# ---- starting points, teachers ----


def test_low_bit_training_starts_from_a_float_checkpoint(tmp_path: Path, few_digits: Data) -> None:
    start = quick(few_digits, tmp_path / "float", "float", epochs=12, learning_rate=1e-2)
    cold = quick(few_digits, tmp_path / "cold", "int8", epochs=1)
    warm = quick(few_digits, tmp_path / "warm", "int8", epochs=1, init=start.folder, model_options=None)
    assert warm.load().config.model_options == {"hidden": [32]}  # the form is that of the start
    assert warm.history[0]["train_loss"] < 0.5 * cold.history[0]["train_loss"]


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path, few_digits: Data) -> None:
    quick(few_digits, tmp_path / "t", epochs=1)
    with pytest.raises(CheckpointError, match="'ternary' checkpoint; init needs one trained with scheme 'float'"):
        quick(few_digits, tmp_path / "u", "int8", init=tmp_path / "t")
    quick(few_digits, tmp_path / "f", "float", epochs=1)
    with pytest.raises(CheckpointError, match=r"tensor '.*' is .*another model"):
        quick(few_digits, tmp_path / "u", "int8", init=tmp_path / "f", model_options={"hidden": [31]})
    assert not (tmp_path / "u").exists()


def test_distillation_follows_its_teacher(tmp_path: Path, few_digits: Data) -> None:
    """A student that sees only a teacher which swaps two classes learns to swap them."""
    start = quick(few_digits, tmp_path / "teacher", "float", epochs=12, learning_rate=1e-2)

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = start.load().model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(x)[:, [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]]
            return logits

    options = {"loss": "kd", "loss_options": {"alpha": 1.0, "temperature": 1.0}}
    student = quick(few_digits, tmp_path / "student", epochs=12, learning_rate=1e-2, teacher=Swapped(), **options)
    images, labels = few_digits.test.batch(slice(None))  # type: ignore[attr-defined]
    with torch.no_grad():
        guess = student.load().model(images).argmax(-1)
    assert (guess[labels == 0] == 1).float().mean() > 0.6
    assert (guess[labels == 3] == 3).float().mean() > 0.6
    by_folder = quick(few_digits, tmp_path / "by-folder", epochs=1, teacher=start.folder, **options)
    assert by_folder.load().config.training["loss"] == "kd"
    others: tuple[tuple[Any, str], ...] = (
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), r"does not take inputs \[1, 8, 8\]"),
        (nn.Flatten(), r"gives \[2, 64\] for 2 inputs, expected \[2, 10\]"),
    )
    for teacher, words in others:
        with pytest.raises(UsageError, match=words):
            quick(few_digits, tmp_path / "none", epochs=1, teacher=teacher, **options)
    with pytest.raises(CheckpointError, match="give the folder that `subbyte train --out` made"):
        quick(few_digits, tmp_path / "none", epochs=1, teacher=tmp_path / "nowhere", **options)
    assert not (tmp_path / "none").exists()


# ---- the caller's own module and data ----


def test_any_module_and_any_datasets(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (120,), generator=generator)
    bright = 2.0 * nn.functional.one_hot(labels, 3).reshape(120, 3, 1, 1)  # one channel for each class
    images = 0.3 * torch.randn(120, 3, 4, 4, generator=generator) + bright
    pair = (TensorDataset(images[:80], labels[:80]), TensorDataset(images[80:], labels[80:]))

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3))

    module = make()
    result = train(
        module, pair, "int4", 12, tmp_path, batch_size=8, learning_rate=0.01, progress=False, accelerator="cpu"
    )
    assert result.accuracy > 0.85
    loaded = result.load(make())
    assert loaded.config.model is None
    assert loaded.config.shape[1:] == (4, 4)
    assert torch.equal(loaded.model(images), module(images))


# ---- what is written ----


def test_training_does_not_replace_what_it_reads(tmp_path: Path, few_digits: Data) -> None:
    made = quick(few_digits, tmp_path / "f", epochs=1, scheme="float").folder
    (tmp_path / "link").symlink_to("f")
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    for options in ({"init": made}, {"init": str(tmp_path / "link")}, {"teacher": made, "loss": "kd"}):
        for how in ("overwrite", "resume"):
            with pytest.raises(UsageError, match="which training would replace; name another out"):
                quick(few_digits, made, epochs=1, **options, **{how: True})
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_known_before_the_training(tmp_path: Path, few_digits: Data) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        quick(few_digits, tmp_path / "file" / "run", epochs=1)
    with pytest.raises(WriteError, match="the name is too long"):
        quick(few_digits, tmp_path / ("run" * 100), epochs=1)


def test_a_run_is_as_private_as_the_umask_says(tmp_path: Path, few_digits: Data) -> None:
    before = os.umask(0o077)
    try:
        folder = quick(few_digits, tmp_path / "run", epochs=1).folder
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())} == {0}


def test_the_log_has_a_row_for_every_epoch(tmp_path: Path, few_digits: Data) -> None:
    result = quick(few_digits, tmp_path, epochs=2)
    with (tmp_path / LOG).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[-1]["test_accuracy"]) == result.accuracy
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["checkpoint.json", weights_file(tmp_path).name, CONFIGURATION, LOG, STATE]
    )


def test_progress_prints_the_accuracy_of_every_epoch(
    tmp_path: Path, few_digits: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quick(few_digits, tmp_path, epochs=2, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert f"accuracy {100 * result.accuracy:.2f}%" in lines[-1]


# ---- requests that cannot be ----


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"scheme": "ternery"}, UnknownNameError, "Did you mean 'ternary'"),
        ({"scheme_options": {"bits": 3}}, UnknownNameError, "option of scheme 'ternary'"),
        ({"loss": "crossentropy"}, UnknownNameError, "Did you mean 'cross-entropy'"),
        ({"loss": "kd"}, UsageError, "needs a teacher"),
        ({"teacher": "runs/teacher"}, UsageError, "learns nothing from a teacher"),
        ({"loss_options": {"gamma": 1}}, UsageError, "no option 'gamma'"),
        ({"loss_options": {"label_smoothing": "much"}}, UsageError, "'much', expected one of: float"),
        ({"epochs": 0}, UsageError, "epochs must be positive"),
        ({"optimizer": "adam"}, UsageError, "adamw, sgd"),
        ({"learning_rate": -1.0}, UsageError, "learning_rate must be positive"),
        ({"model_options": {"wide": 3}}, UsageError, "no option 'wide'"),
        ({"model_options": {"hidden": 32}}, UsageError, "32, expected one of: list of int"),
        ({"model_options": {"hidden": [32, 0]}}, UsageError, "'hidden' is 0; it must be at least 1"),
        ({"warmup": 1.0}, UsageError, "share of all steps"),
        ({"precision": "16-true"}, UsageError, "precision"),
        ({"epoch": 3}, UnknownNameError, "field of a run 'epoch'. Did you mean 'epochs'"),
        ({"strategy": "ddp_spawn"}, UsageError, "use 'ddp'"),
        ({"data": 3}, UsageError, "data must be"),
        ({"init": "/nowhere"}, CheckpointError, "is not a checkpoint"),
    ],
)
def test_requests_that_cannot_be(tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    request: dict[str, Any] = {"model": "mlp", "out": tmp_path / "out", "progress": False, **options}
    with pytest.raises(kind, match=message):
        train(**request)
    assert not (tmp_path / "out").exists()


def test_a_model_with_several_outputs_is_refused_in_words(tmp_path: Path, few_digits: Data) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.layer(x.flatten(1))
            return {"logits": logits, "auxiliary": logits.relu()}

    with pytest.raises(UsageError, match=r"returns a dict, train learns from one tensor, .* loop of your own"):
        train(TwoHeads(), few_digits, "int8", 1, tmp_path / "run", progress=False, accelerator="cpu")


def test_importing_models_does_not_import_lightning_or_sklearn() -> None:
    code = "import subbyte.models, sys; print(sorted({'lightning', 'sklearn', 'onnx', 'tvm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_from_datasets_keeps_what_it_is_told() -> None:
    images, labels = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    data = from_datasets(TensorDataset(images, labels), TensorDataset(images, labels), classes=5, name="mine")
    assert (data.classes, data.name) == (5, "mine")
