"""Quantizers while a model trains: what they report, when they are frozen, in `train` and in loops of others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from subbyte.errors import UsageError
from subbyte.models import from_datasets, quantize, train
from subbyte.models.quant import get_scheme, quantized_layers
from subbyte.models.quant.estimators.reste import reste_order
from subbyte.models.train.callbacks import QuantizationCallback
from subbyte.models.train.hugging_face import QuantizationTrainerCallback
from subbyte.models.train.quantizers import Quantizers, own_parameters
from subbyte.models.train.trainer import quiet_lightning

IMAGES = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(48) % 3


def net(scheme: str = "int8") -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return quantize(model, scheme, example=IMAGES[:8]) if scheme else model


def test_a_report_counts_flips_and_those_that_go_back() -> None:
    """int4 codes by hand: a weight w has the code round(w / step), and the step stays."""
    model = quantize(nn.Sequential(nn.Linear(4, 2)), "int4", example=torch.rand(4, 4))
    (layer,) = quantized_layers(model).values()
    step = layer.weight_quantizer.scales().reshape(2, 1)
    latent = layer.weight_quantizer.latent()

    def put(codes: list[list[int]]) -> None:
        with torch.no_grad():
            latent.copy_(torch.tensor(codes) * step)

    quantizers = Quantizers(model)
    put([[0, 1, 2, 3], [0, 0, 0, 0]])
    assert quantizers.report()["flipped"] == 0  # the first look
    put([[1, 1, 2, 3], [0, 0, 0, -5]])
    assert quantizers.report() == {"flipped": 2 / 8, "oscillating": 0.0, "step_ratio": 1.0}
    put([[0, 1, 2, 3], [0, 0, 0, -6]])  # one goes back, one goes on
    assert quantizers.report() == {"flipped": 2 / 8, "oscillating": 1 / 8, "step_ratio": 1.0}
    resumed = Quantizers(model)
    resumed.load_state_dict(quantizers.state_dict())
    put([[0, 1, 2, 2], [0, 0, 0, -3]])
    for one in (quantizers, resumed):
        assert one.report() == {"flipped": 2 / 8, "oscillating": 1 / 8, "step_ratio": 1.0}
    assert Quantizers(nn.Linear(2, 2)).report() == {}


def test_the_step_ratio_is_that_of_the_steps() -> None:
    model = net()
    before = [layer.activation_quantizer.scales() for layer in quantized_layers(model).values()]
    for parameter in own_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    ratios = []
    for layer, first in zip(quantized_layers(model).values(), before, strict=True):
        ratios.append((layer.activation_quantizer.scales() / first).reshape(1))
        ratios.append(layer.weight_quantizer.scales().flatten() / layer.weight_quantizer.first_step.flatten())  # type: ignore[operator, union-attr]
    expected = torch.cat(ratios).log().mean().exp().item()
    assert Quantizers(model).report()["step_ratio"] == pytest.approx(expected, rel=1e-6)


class Values(Callback):
    """The quantizers' parameters after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, learner: Any, *_: Any) -> None:
        self.seen.append(torch.cat([p.detach().flatten().clone() for p in own_parameters(learner.model)]))


def test_frozen_quantizers_stay_while_weights_learn(tmp_path: Path) -> None:
    parts = TensorDataset(IMAGES.reshape(48, 1, 4, 4), LABELS)
    values = Values()
    options = {"optimizer": "sgd", "batch_size": 8, "accelerator": "cpu", "progress": False, "callbacks": [values]}
    result = train(net(""), from_datasets(parts, parts), "int8", 2, tmp_path, freeze=0.5, **options)
    assert len(values.seen) == 12
    moved = [not torch.equal(a, b) for a, b in zip(values.seen, values.seen[1:], strict=False)]
    assert moved == [True] * 5 + [False] * 6  # step 7 is the first that begins with half of the steps done
    assert all(row["flipped"] > 0 for row in result.history)
    assert result.history[1]["step_ratio"] == pytest.approx(result.history[0]["step_ratio"], rel=1e-6) != 1.0


def test_a_loop_of_your_own_with_lightning() -> None:
    class Mine(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = net("")

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.model.parameters(), lr=0.1)

    module, callback, values = Mine(), QuantizationCallback("int4", example=IMAGES[:8], freeze=0.0), Values()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 16, num_workers=0)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback, values], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with quiet_lightning():
        trainer.fit(module, loader)
    assert set(quantized_layers(module.model)) == {"1", "3"}
    assert all(torch.equal(seen, values.seen[0]) for seen in values.seen)
    assert callback.reported["flipped"] > 0
    assert float(trainer.callback_metrics["quantizers/flipped"]) == pytest.approx(callback.reported["flipped"])
    with pytest.raises(UsageError, match="Mine has no module 'network'"):
        QuantizationCallback("int8", of="network").setup(trainer, Mine(), "fit")


def test_a_trainer_of_hugging_face_calls_these_hooks() -> None:
    """The hooks in the order of its loop: steps of the optimizer by hand, between them what its Trainer calls."""
    model = quantize(net(""), get_scheme("binary", keep=None), example=IMAGES[:8])
    callback = QuantizationTrainerCallback(freeze=0.5)
    state = SimpleNamespace(global_step=0, max_steps=6, epoch=0.0, log_history=[])
    callback.on_train_begin(None, state, None, model=model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    orders, own = [], []
    for epoch in range(2):
        for _ in range(3):
            callback.on_step_begin(None, state, None, model=model)
            orders.append(quantized_layers(model)["1"].weight_quantizer.order)
            nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
            state.global_step += 1
            callback.on_step_end(None, state, None, model=model)
            own.append(torch.cat([p.detach().flatten().clone() for p in own_parameters(model)]))
        state.epoch = float(epoch + 1)
        callback.on_epoch_end(None, state, None, model=model)
    assert not torch.equal(own[0], own[1])
    assert torch.equal(own[2], own[5])
    assert orders == pytest.approx([reste_order(step / 6) for step in range(6)])  # it was told how far training is
    assert [row["step"] for row in state.log_history] == [3, 6]
    assert state.log_history[0]["quantizers/flipped"] > 0
    with pytest.raises(UsageError, match="has no quantized layer"):
        callback.on_train_begin(None, state, None, model=nn.Linear(2, 2))


def test_the_callback_of_hugging_face_counts_on_from_its_checkpoint(tmp_path: Path) -> None:
    """A run that stopped between two reports, and went on in another process, reports what an unbroken one does."""
    args = SimpleNamespace(output_dir=str(tmp_path))
    (tmp_path / "checkpoint-4").mkdir()
    rows = []
    for resumed in (False, True):
        model, callback = net("int4"), QuantizationTrainerCallback()
        state = SimpleNamespace(global_step=0, max_steps=6, epoch=0.0, log_history=[], is_world_process_zero=True)
        callback.on_train_begin(args, state, None, model=model)
        weight = quantized_layers(model)["1"].weight_quantizer.latent()
        for step in range(1, 7):
            with torch.no_grad():
                weight.mul_(-1.0)
            state.global_step = step
            if step in (3, 6):
                callback.on_epoch_end(args, state, None, model=model)
            if step == 4:
                callback.on_save(args, state, None, model=model)
                if resumed:
                    callback = QuantizationTrainerCallback()
                    callback.on_train_begin(args, state, None, model=model)
        rows.append(state.log_history[-1])
    assert rows[0] == rows[1]
    assert rows[0]["quantizers/oscillating"] > 0
    other = QuantizationTrainerCallback()
    with pytest.warns(UserWarning, match="another model"):
        other.on_train_begin(args, SimpleNamespace(global_step=4), None, model=quantize(nn.Linear(3, 2), "int8"))
    with pytest.warns(UserWarning, match="counted anew from step 5"):
        other.on_train_begin(args, SimpleNamespace(global_step=5), None, model=net("int4"))
