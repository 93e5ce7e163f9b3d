"""What `quantize` does to a model: layers, linked norms, report, refusals; and that what it makes can be trained."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subbyte.dialect.function import output_shapes
from subbyte.errors import QuantizationError, RegistrationError, UnknownNameError
from subbyte.formats import PerGroup
from subbyte.models.quant import (
    LearnedStep,
    Scheme,
    all_schemes,
    exporting,
    get_scheme,
    quantize,
    quantized_layers,
    refresh,
    register_scheme,
    set_progress,
)

NAMES = ["float", "int8", "int4", "ternary", "ternary-median", "binary", "pow2", "dorefa"]


def rows(model: nn.Module) -> dict[str, tuple[str, str, str]]:
    report = model.quantization_report
    return {row.layer: (row.weights, row.activations, row.note) for row in report}  # type: ignore[union-attr]


class Backwards(nn.Module):
    """Executes its layers in the reverse of the order in which they are written; one never."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(4, 2)
        self.b = nn.Linear(4, 4)
        self.a = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.unused = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(self.b(self.a(x)))
        return result


# ---- schemes ----


def test_schemes_are_registered_with_a_summary() -> None:
    found = {scheme.name: scheme for scheme in all_schemes()}
    assert list(found)[: len(NAMES)] == NAMES
    assert all(scheme.summary for scheme in found.values())
    assert found["ternary"].keep == 8


def test_a_scheme_is_made_again_from_its_name_and_options() -> None:
    scheme = get_scheme("int4", group_size=32, keep=None)
    assert scheme.weights == LearnedStep(4, PerGroup(32))
    assert scheme.keep is None
    assert get_scheme(scheme.name, **dict(scheme.options)) == scheme
    assert get_scheme("ternary", statistic="median").weights == get_scheme("ternary-median").weights


def test_unknown_names_options_and_values_say_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ternary'"):
        get_scheme("ternery")
    with pytest.raises(UnknownNameError, match="Did you mean 'group_size'"):
        get_scheme("int4", groupsize=32)
    with pytest.raises(QuantizationError, match="'row', expected one of: 'tensor', 'token'"):
        get_scheme("int8", activations="row")
    with pytest.raises(QuantizationError, match="'8', expected one of: int, None"):
        get_scheme("int4", group_size="8")
    with pytest.raises(QuantizationError, match="True, expected one of: int, None"):
        get_scheme("int4", keep=True)
    with pytest.raises(QuantizationError, match="2 to 8 bits"):
        get_scheme("int8", keep=16)
    with pytest.raises(QuantizationError, match="makes no quantizer"):
        Scheme(weights="ternary", activations=LearnedStep(8))  # type: ignore[arg-type]
    with pytest.raises(RegistrationError, match="registered twice"):
        register_scheme("int8")(lambda: Scheme())


# ---- which layers ----


def test_first_and_last_are_those_that_execute_first_and_last() -> None:
    model = quantize(Backwards(), "ternary", example=torch.zeros(1, 4))
    assert rows(model) == {
        "a": ("int8", "int8", "first layer, int8"),
        "b": ("ternary", "int8", ""),
        "c": ("int8", "int8", "last layer, int8"),
        "never": ("float", "float", "it is not executed by the example"),
        "unused": ("-", "float", "it is not executed by the example"),
    }
    assert set(quantized_layers(model)) == {"a", "b", "c"}


def test_without_an_example_the_order_of_the_modules_counts() -> None:
    found = rows(quantize(Backwards(), "ternary"))
    assert found["c"][2] == "first layer, int8"
    assert found["never"][2] == "last layer, int8"


def test_keep_none_treats_all_layers_alike() -> None:
    model = quantize(Backwards(), get_scheme("binary", keep=None), example=torch.zeros(1, 4))
    assert {rows(model)[name][:2] for name in "abc"} == {("binary", "binary")}


def test_classes_and_the_float_scheme_stay() -> None:
    class MyConv(nn.Conv2d):
        note = "mine"

    model = nn.Sequential(MyConv(1, 2, 3), nn.BatchNorm2d(2))
    untouched = copy.deepcopy(model)
    quantize(model, "int8")
    assert isinstance(model[0], MyConv)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert model[0].note == "mine"
    quantize(untouched, "float")
    assert type(untouched[0]) is MyConv
    assert type(untouched[1]) is nn.BatchNorm2d
    assert rows(untouched) == {"0": ("float", "float", "float scheme")}


def test_what_cannot_be_quantized_stays_in_float_and_is_listed() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.up = nn.ConvTranspose2d(1, 1, 2)
            self.own = Own(4, 4)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.tied = nn.Linear(4, 5, bias=False)
            self.tied.weight = self.embedding.weight
            self.pool = nn.AvgPool2d(2, padding=1)
            self.fine = nn.Linear(4, 4)

    found = rows(quantize(Model(), "int8"))
    assert {name for name, row in found.items() if row[0] == "int8"} == {"fine"}
    reasons = {
        "embedding": "look-up",
        "attention": "attention",
        "attention.out_proj": "attention",
        "up": "transposed",
        "own": "forward of its own",
        "normed": "parametrized already",
        "tied": "shared with 'embedding'",
        "pool": "padding",
    }
    for name, reason in reasons.items():
        assert "float" in found[name][1]
        assert reason in found[name][2], name


def test_refusals() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(QuantizationError, match="'0' pads with 'reflect'"):
        quantize(model, "int8")
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize(quantize(nn.Sequential(nn.Linear(2, 2)), "int8"), "int8")
    with pytest.raises(QuantizationError, match="lazy"):
        quantize(nn.Sequential(nn.LazyLinear(2)), "int8")
    with pytest.raises(QuantizationError, match="float64"):
        quantize(nn.Sequential(nn.Linear(2, 2)).double(), "int8")
    with pytest.raises(QuantizationError, match="fails on the example"):
        quantize(nn.Sequential(nn.Linear(2, 2)), "int8", example=torch.zeros(1, 3))
    broken = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(broken[1].weight, float("nan"))
    with pytest.raises(QuantizationError, match="'1' has NaN"):
        quantize(broken, "int8")
    assert type(broken[0]) is nn.Linear  # nothing was changed
    with pytest.raises(QuantizationError, match="0 to 1"):
        set_progress(nn.Linear(1, 1), 1.5)


def test_export_needs_data_and_eval_mode() -> None:
    model = quantize(nn.Sequential(nn.Linear(2, 2)), "int8")
    with pytest.raises(QuantizationError, match=r"call model\.eval"):
        refresh(model)
    model.eval()
    with pytest.raises(QuantizationError, match="seen no data"), exporting(output_shapes, model):
        pass
    with exporting(output_shapes), pytest.raises(QuantizationError, match="run a batch"):
        model(torch.ones(1, 2))


def test_a_fused_transformer_layer_still_goes_through_the_quantized_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = quantize(nn.Sequential(layer), get_scheme("ternary", keep=None), example=torch.zeros(1, 3, 8))
    model(torch.randn(2, 3, 8))
    model.eval()
    quantizer = quantized_layers(model)["0.linear1"].activation_quantizer
    inputs: list[Tensor] = []  # not by a hook: torch avoids its fused path where there are hooks

    def quantize_and_note(x: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs.append(x)
        return type(quantizer).quantize(quantizer, x)

    quantizer.__dict__["quantize"] = quantize_and_note
    with torch.inference_mode():
        model(torch.randn(2, 3, 8))
    assert len(inputs) == 1


# ---- batch norms ----


class Norms(nn.Module):
    """One norm that alone uses its layer's output, and three that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv4, self.norm4 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.norm5 = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        y = self.conv2(x)
        x = self.norm2(y) + y  # the layer's output is used twice
        x = self.norm3(F.relu(self.conv3(x)))  # a function in between
        x = self.norm4(self.conv4(self.norm4(self.conv4(x))))  # called twice
        result: Tensor = self.norm5(x)
        return result


def test_only_a_norm_that_alone_uses_a_layers_output_is_linked() -> None:
    model = Norms()
    model.norm3.eval()
    quantize(model, "int8", example=torch.randn(2, 2, 3, 3))
    linked = {name: layer.batch_norm for name, layer in quantized_layers(model).items()}
    assert linked == {"conv1": model.norm1, "conv2": None, "conv3": None, "conv4": None}
    assert (model.training, model.norm3.training) == (True, False)
    assert model.norm1.num_batches_tracked == 0  # watching changed nothing
    copied = copy.deepcopy(model)
    assert quantized_layers(copied)["conv1"].batch_norm is copied.norm1


def test_eval_mode_computes_each_norm_as_torch_does() -> None:
    torch.manual_seed(0)
    model = quantize(Norms(), "int8", example=torch.randn(2, 2, 3, 3))
    for _ in range(5):
        model(torch.randn(8, 2, 3, 3))
    model.eval()
    for norm in (model.norm1, model.norm2):
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
    x = torch.randn(4, 2, 3, 3)
    linked = model.conv1(x)
    layer = quantized_layers(model)["conv1"]
    assert model.norm1(linked) is linked
    model.norm1.train()  # now the layer must leave it out
    plain = model.conv1(x)
    model.norm1.eval()
    assert torch.equal(model.conv1(x), linked)
    for norm, got, given in ((model.norm1, linked, plain), (model.norm2, model.norm2(plain), plain)):
        expected = F.batch_norm(given, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    layer.train()  # frozen statistics in training: not absorbed, and still learning
    model.norm1(model.conv1(x)).sum().backward()
    model.norm2(plain).sum().backward()
    assert model.norm1.weight.grad is not None
    assert model.norm2.weight.grad is not None
    with torch.no_grad():
        assert torch.equal(model.norm2(plain), model.norm2(plain.clone().requires_grad_()))


def test_a_linked_norm_that_was_replaced_is_found() -> None:
    model = quantize(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), "int8", example=torch.zeros(1, 1, 2, 2))
    model(torch.randn(4, 1, 2, 2))
    refresh(model.eval())
    with pytest.raises(QuantizationError, match="no longer in the model"):
        refresh(nn.SyncBatchNorm.convert_sync_batchnorm(model))


def test_a_linear_with_a_linked_norm_wants_vectors() -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "int8", example=torch.zeros(2, 3))
    model(torch.randn(8, 3))
    model.eval()
    with pytest.raises(QuantizationError, match="takes \\[batch, features\\]"):
        model(torch.randn(8, 4, 3))


# ---- training ----


@pytest.mark.parametrize(
    ("name", "options"),
    [*[(name, {}) for name in NAMES], ("int4", {"group_size": 5}), ("ternary", {"activations": "token"})],
)
def test_a_few_steps_of_training_lower_the_loss(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    x, y = torch.randn(48, 1, 6, 6), torch.arange(48) % 3
    x[:, 0, 0] += 2 * y[:, None]
    quantize(model, get_scheme(name, **options), example=x[:2])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for step in range(30):
        set_progress(model, step / 30)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.75 * losses[0]
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []


PROCESS = """
import os, sys, torch
from torch import nn
from subbyte.models.quant import get_scheme, quantize

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
for scheme in ("int8", "binary"):
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), get_scheme(scheme, keep=None))
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel((3 * rank + 1) * torch.rand(8, 4) - rank).sum().backward()  # each process sees data of another range
    parallel.eval()(torch.rand(8, 4))  # validation makes constants, which no process waits for
    parallel.train()(torch.rand(8, 4)).sum().backward()
    torch.save((model.state_dict(), [p.grad for p in model.parameters()]), f"{folder}/{scheme}-{rank}.pt")
torch.distributed.barrier()  # neither process leaves while the other still talks to it
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # all is saved; gloo's own threads may abort the interpreter's exit
"""


def test_distributed_processes_start_from_one_statistic(tmp_path: Path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    for scheme in ("int8", "binary"):
        (state, grads), (others, other_grads) = (torch.load(tmp_path / f"{scheme}-{rank}.pt") for rank in range(2))
        assert all(torch.equal(value, others[name]) for name, value in state.items())
        assert all(torch.equal(grad, other) for grad, other in zip(grads, other_grads, strict=True))
        assert all(state[name] for name in state if name.endswith("initialized"))
