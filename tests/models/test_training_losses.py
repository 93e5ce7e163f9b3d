"""Training with losses that read modules, keep memory and know their samples: resumed to the same bits."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from subbyte.errors import UnknownNameError, UsageError
from subbyte.models import Data, from_datasets, train
from subbyte.models.checkpoint import weights_file
from subbyte.models.checkpoint_files import STATE
from subbyte.models.losses import Outputs, Targets, loss, register
from subbyte.models.losses.memory import Queue, QueueOf, Table, TableOf
from subbyte.models.options import Count, Positive


class StopAt(Callback):
    """Break off as a crash would, in front of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


MODULES = 'embeddings="3:input", teacher_embeddings="1"'


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(96, 1, 4, 4, generator=generator), torch.arange(96) % 3
    return from_datasets(TensorDataset(images[:64], labels[:64]), TensorDataset(images[64:], labels[64:]))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sample numbers of each step of loss 'seen', which has a table, a queue and a learned option."""
    monkeypatch.setattr(register, "_LOSSES", dict(register._LOSSES))
    steps: list[list[int]] = []

    @loss(
        "seen",
        needs=("logits", "ids"),
        source="test",
        learned=("scale",),
        memory={"table": TableOf("logits"), "queue": QueueOf("logits", length="length")},
    )
    def seen(
        outputs: Outputs, targets: Targets, table: Table, queue: Queue, scale: Positive = 2.0, length: Count = 40
    ) -> Tensor:
        """distance from the logits of the last epoch and from those of the last steps"""
        before = table.read(targets.ids)
        others = queue.rows.mean(0) if len(queue.rows) else torch.zeros_like(before[0])
        table.write(targets.ids, outputs.logits)
        queue.push(outputs.logits)
        steps.append(targets.ids.tolist())
        return ((scale * outputs.logits - before - others) ** 2).mean(-1) - scale.log()

    steps.clear()
    return steps


def quick(data: Data, folder: Path, loss: str, epochs: int = 2, **options: Any) -> Any:
    options = {"model_options": {"hidden": [8]}, "batch_size": 16, "progress": False, "accelerator": "cpu", **options}
    return train("mlp", data, "ternary", epochs, folder, loss=loss, **options)


def test_memory_and_what_is_learned_resume_to_the_same_bits(tmp_path: Path, data: Data, seen: list[list[int]]) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    text = f"ce + 0.1*seen(length=24) + 0.5*moco(length=24, {MODULES})"
    options = {"teacher": teacher, "ema": 0.9, "save_every": 1}
    whole = quick(data, tmp_path / "whole", text, **options)
    for epoch in (seen[:4], seen[4:8]):
        assert sorted(chain.from_iterable(epoch)) == list(range(64))
    with pytest.raises(RuntimeError, match="power"):
        quick(data, tmp_path / "broken", text, **options, callbacks=[StopAt(6)])  # in the middle of the second epoch
    broken = quick(data, tmp_path / "broken", text, **options, resume=True)
    assert seen[8:14] == seen[:6]
    assert seen[14:] == seen[6:8]
    for file in (STATE, weights_file(whole.folder).name):
        expected, found = load_file(whole.folder / file), load_file(broken.folder / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    state = load_file(whole.folder / STATE)
    (scale,) = (value for name, value in state.items() if name.endswith("learned.scale"))
    assert not torch.isclose(scale.exp(), torch.tensor(2.0))  # it is trained
    assert {name.split(".memory.")[1] for name in state if ".memory." in name} == {
        *("table.kept", "table.written", "queue.kept", "queue.pushed")
    }
    assert not any("loss" in name or "memory" in name for name in load_file(weights_file(whole.folder)))


def test_making_the_memory_leaves_the_model_as_it_is(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "_LOSSES", dict(register._LOSSES))

    @loss("still", needs=("logits", "ids"), source="test", memory={"table": TableOf("logits")})
    def still(outputs: Outputs, targets: Targets, table: Table) -> Tensor:
        """a loss without a gradient"""
        return 0 * (outputs.logits - table.read(targets.ids)).sum(-1)

    plain, with_memory = (quick(data, tmp_path / text, text, epochs=1) for text in ("ce", "ce + still"))
    expected, found = (load_file(weights_file(run.folder)) for run in (plain, with_memory))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("supcon(embeddings=1)", "embeddings .* of V >= 2 views .*; take a task whose batches"),
        ("ce + huber", "needs predictions, real values"),
        ("ce + moco(embeddings=1, teacher_embeddings=1)", "needs a teacher's embeddings"),
        ("ce + kd", "needs a teacher"),
    ],
)
def test_what_a_run_lacks_is_refused_before_any_work(tmp_path: Path, data: Data, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quick(data, tmp_path / "run", text)
    assert not (tmp_path / "run").exists()


def test_a_module_that_does_not_exist_is_refused_before_any_work(tmp_path: Path, data: Data) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    text = 'ce + moco(embeddings="33", teacher_embeddings="1")'
    with pytest.raises(UnknownNameError, match="unknown module of the model '33'"):
        quick(data, tmp_path / "run", text, teacher=teacher)
    assert not (tmp_path / "run").exists()
