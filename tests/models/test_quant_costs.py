"""What a recipe costs: MACs against torch's own counter, bytes against what is stored, and nothing unknown is zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from saved_checkpoint import config_for, trained_a_little
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from subbyte.cli import main
from subbyte.models import list_models, save_checkpoint
from subbyte.models.named_model import named_model
from subbyte.models.quant import Rule, as_recipe, combine, get_scheme, quantized_layers, read_recipe
from subbyte.models.quant.costs import costs
from subbyte.models.quant.macs import count_macs


@pytest.mark.parametrize("name", list_models())
def test_macs_of_every_model_are_half_of_torchs_operations(name: str) -> None:
    with torch.device("cpu" if name == "gru" else "meta"):  # shapes alone, but the gru reads its values
        found = named_model(name)
    with FlopCounterMode(display=False) as counter:
        found.module.eval()(found.example)
    report = costs(found.module, "float", found.example)
    assert 2 * sum(report.macs.values()) == counter.get_total_flops() > 0
    assert report.unknown == ()
    assert report.weight_bytes + report.other_bytes == report.float_bytes
    assert report.float_bytes == 4 * sum(p.numel() for p in found.module.parameters())


class Net(nn.Module):
    """Every kind of product: strided, grouped and transposed convolutions, a shared table, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.table = nn.Embedding(5, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.twice = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(torch.relu(self.first(x))).flatten(2).transpose(1, 2)  # [N, 64, 6]
        y = y + self.table(torch.zeros(len(x), 64, dtype=torch.int64))
        y = self.twice(torch.relu(self.twice(self.attention(y, y, y)[0])))
        result: Tensor = self.head(y)
        return result


def test_each_layer_has_its_products_its_bytes_and_its_rule() -> None:
    rules = (Rule("int8", match="first"), Rule(combine("ternary", "int8", per="token"), type="Linear", name="tw*"))
    report = costs(Net(), (*rules, Rule("float", name="attention*"), Rule("int4")), torch.randn(1, 4, 8, 8))
    found = {row.name: row for row in report.layers}
    expected = {
        "first": 16 * 8 * 18,  # 8 x 4 x 4 results, each of 2 channels x 3 x 3
        "up": 16 * 8 * 24,  # 6 x 2 x 2 for each of 8 x 4 x 4 inputs
        "table": 0,
        "attention": 64 * 6 * 18 + 2 * 64 * 64 * 6 + 64 * 6 * 6,
        "attention.out_proj": 0,  # its weight is read by the attention
        "twice": 2 * 64 * 36,
        "unused": 0,
        "head": 64 * 30,
    }
    assert {name: row.macs for name, row in found.items()} == expected
    assert (sum(report.macs.values()), report.other_macs) == (sum(expected.values()), 0)
    assert report.macs == {"32x32": sum(expected.values()) - 4608 - 2304, "2x8": 4608, "8x8": 2304}
    stored = {name: row.weight_bytes for name, row in found.items()}
    assert stored["first"] == 144 + 4 * 8  # codes, and a step for each channel
    assert stored["twice"] == 6 * 2 + 4  # a row of six weights in two bytes, and a scale
    assert (stored["table"], stored["head"]) == (120, 0)  # one tensor, counted once
    assert report.float_bytes == 4 * sum(p.numel() for p in Net().parameters())
    assert [found[name].rule for name in ("first", "twice", "attention", "up")] == [
        "1 first", "2 name tw*, type Linear", "3 name attention*", "4 rest",
    ]  # fmt: skip
    assert "transposed" in found["up"].why
    assert "shared with 'table'" in found["head"].why
    assert "not executed" in found["unused"].why
    assert report.average_bits == pytest.approx((144 * 8 + 36 * 2) / 180)


def test_products_that_are_not_counted_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.memory(torch.fft.fft(x).real)[0])
            return y

    report = costs(Recurrent(), "ternary", torch.randn(1, 5, 3))
    assert [row.macs for row in report.layers] == [None, 40]
    assert {line.split(":")[0] for line in report.unknown} == {"outside of all layers", "memory"}
    assert report.layers[0].weight_bytes == 4 * (16 * 3 + 16 * 4)


def test_a_model_may_be_one_layer_and_counting_leaves_no_traces() -> None:
    layer = nn.Linear(3, 4).train()
    assert count_macs(layer, torch.randn(1, 3), [""]).layers == {"": 12}
    assert layer.training
    assert not {**layer._forward_hooks, **layer._forward_pre_hooks}
    assert costs(layer, get_scheme("int4", keep=None), torch.randn(1, 3)).macs == {"4x8": 12}
    assert list(quantized_layers(layer)) == [""]


# ---- the command ----


def recipe(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["recipe", *arguments])


def test_the_command_prints_what_it_finds_and_writes_a_file_to_edit(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    told = recipe("resnet8", "--data", "digits", "--scheme", "int4", "-o", str(file)).output
    assert "resnet8 for [1, 8, 8], 10 outputs, int4" in told
    assert "MACs: 763,520: 753,664 of 4x8, 9,856 of 8x8" in told
    assert read_recipe(file).rules == as_recipe("int4").rules
    file.write_text("- {name: '5', scheme: float}\n" + file.read_text())
    options = ("--model-option", "hidden=8,8", "--recipe", str(file), "--json")
    report = json.loads(recipe("mlp", "--data", "digits", *options).output)
    assert [(row["name"], row["rule"], row["weights"]) for row in report["layers"]] == [
        ("1", "2 first-and-last", "int8"), ("3", "3 rest", "int4"), ("5", "1 name 5", "float"),
    ]  # fmt: skip
    assert report["macs"] == {"8x8": 8 * 64, "32x32": 8 * 10, "4x8": 8 * 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet9",), "'resnet9' is neither a model"),
        (("mlp", "--scheme", "int4", "--recipe", "r.yaml"), "leave one out"),
        (("mlp", "--recipe", "none.yaml"), "No such file"),
        (("mlp", "--data", "digits", "--model-option", "depth=3"), "no option 'depth'"),
        (("mlp", "--scheme", "ternery"), "Did you mean 'ternary'"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = recipe(*arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_a_checkpoint_is_shown_with_its_own_recipe(tmp_path: Path) -> None:
    model = trained_a_little(config_for("ternary"))
    folder = str(save_checkpoint(tmp_path / "t", model, config_for("ternary")))
    report = json.loads(recipe(folder, "--json").output)
    layers = quantized_layers(model)
    assert {row["name"]: (row["weights"], row["weight_bytes"]) for row in report["layers"]} == {
        name: (layer.weight_quantizer.format.name, layer.low_bit_weight().nbytes) for name, layer in layers.items()
    }
    other = json.loads(recipe(folder, "--scheme", "binary", "--json").output)
    assert [row["weights"] for row in other["layers"]] == ["int8", "binary", "int8"]
    assert "says what its model is" in recipe(folder, "--data", "digits").output
