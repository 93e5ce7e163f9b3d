"""Sensitivities: measured as by quantizing one layer by hand, the same in each call; proposals against brute force."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from saved_checkpoint import config_for, trained_a_little
from torch import Tensor, nn

from subbyte.cli import main
from subbyte.errors import QuantizationError, UsageError
from subbyte.models import load_data, save_checkpoint
from subbyte.models.layer_sensitivity import measure_sensitivity
from subbyte.models.named_model import named_model
from subbyte.models.quant import (
    Rule,
    Sensitivities,
    get_scheme,
    propose,
    quantize,
    quantized_layers,
    read_recipe,
    sensitivity,
)
from subbyte.models.quant.recipe import Layer
from subbyte.models.quant.sensitivities import LayerSensitivity
from subbyte.models.tasks import get_task

SCHEMES = ("ternary", "int4", "int8")


class Net(nn.Module):
    """A convolution with a batch norm, a layer that is called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)
        self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x))).mean(-1)
        result: Tensor = self.head(torch.relu(self.twice(torch.relu(self.twice(y)))))
        return result


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made(torch.randn(64, 4, 9))  # the batch norm has seen data
    return made.eval()


BATCHES = [torch.randn(n, 4, 9, generator=torch.Generator().manual_seed(n)) for n in (8, 5)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_alone_is_measured_as_by_a_recipe_for_it(scheme: str) -> None:
    model = net()
    found = sensitivity(model, BATCHES, [scheme], measure=lambda outputs: {"first": float(outputs[0][0, 0])})
    assert [row.layer for row in found.rows] == ["stem", "twice", "head"]
    with torch.no_grad():
        reference = torch.cat([model(batch) for batch in BATCHES]).double()
    for row in found.rows:
        alone = quantize(net(), [Rule(scheme, name=row.layer), Rule("float")], example=BATCHES[0][:1]).eval()
        assert list(quantized_layers(alone)) == [row.layer]
        with torch.no_grad():
            output = torch.cat([alone(batch) for batch in BATCHES]).double()
        noise = float((output - reference).square().sum() / reference.square().sum())
        assert row.noise == pytest.approx(noise, rel=1e-3)  # a batch norm that is part of the layer rounds differently
        assert row.scores["first"] == pytest.approx(float(output[0, 0]), rel=1e-4)
        assert row.decibels == pytest.approx(-10 * math.log10(noise), abs=0.01)
    assert found.scores["first"] == pytest.approx(float(reference[0, 0]), rel=1e-6)
    assert found.samples == 13


def test_measuring_changes_nothing_and_gives_the_same_numbers_again() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    one, two = (sensitivity(model, BATCHES, SCHEMES) for _ in range(2))
    assert one.as_data() == two.as_data()
    assert model.training
    assert not quantized_layers(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer in ("stem", "twice", "head"):  # more bits, less noise
        noise = [one.table(scheme)[layer] for scheme in SCHEMES]
        assert noise == sorted(noise, reverse=True)


def test_a_layer_of_outliers_is_the_most_sensitive() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x) for layer in self.layers]).sum(0)

    model, generator = Sum(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.copy_(torch.randn(32, 32, generator=generator))  # type: ignore[union-attr, operator]
        model.layers[2].weight[:, 0] = 30.0  # type: ignore[index, operator]
    found = sensitivity(model, [torch.randn(64, 32, generator=generator)], ["int4"])
    assert max(found.table("int4").items(), key=lambda item: item[1])[0] == "layers.2"


def test_what_cannot_be_measured_is_refused_or_said() -> None:
    for schemes in ((), ("int4", "int4")):
        with pytest.raises(QuantizationError, match="name each of them once"):
            sensitivity(net(), BATCHES, schemes)
    with pytest.raises(QuantizationError, match="zero everywhere"):
        sensitivity(nn.Sequential(nn.Linear(4, 4)), [torch.full((2, 4), math.nan)], ["int4"])
    (row,) = sensitivity(nn.Linear(3, 3), [torch.randn(2, 3)], ["int4"]).rows
    assert (row.noise, row.decibels, "put it into one" in row.why) == (None, None, True)
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(36, 2))
    assert list(sensitivity(model, BATCHES, ["int4"]).table("int4")) == ["2"]


# ---- proposals ----


def table(noise: list[list[float]], weights: list[int]) -> Sensitivities:
    """Sensitivities of layers l0, l1, ..., with the noise of each at each scheme."""
    rows = [
        LayerSensitivity(f"l{i}", scheme, count, bits, row[place])
        for i, (row, count) in enumerate(zip(noise, weights, strict=True))
        for place, (scheme, bits) in enumerate(zip(SCHEMES, (2, 4, 8), strict=True))
    ]
    return Sensitivities(tuple(rows), tuple(get_scheme(name, keep=None) for name in SCHEMES), 1)


noises = st.tuples(*[st.floats(1e-6, 1.0)] * 3).map(lambda row: sorted(row, reverse=True))


@given(st.lists(st.tuples(noises, st.integers(1, 1000)), min_size=1, max_size=6), st.floats(0, 1))
def test_a_proposal_is_the_least_noise_of_all_that_keep_the_order(
    layers: list[tuple[list[float], int]], share: float
) -> None:
    noise, weights = [row for row, _ in layers], [count for _, count in layers]
    found = table(noise, weights)
    made = propose(found, share=share)
    budget = 2 + 6 * share
    assert made.bits <= budget + 1e-9
    modules = [Layer(f"l{i}", nn.Linear(1, 1)) for i in range(len(layers))]
    decided = made.recipe.decide(modules)
    level = {name: SCHEMES.index(made.recipe.rules[rule].scheme.name) for name, rule in decided.items()}
    chosen = [level[f"l{i}"] for i in range(len(layers))]
    bits = [(2, 4, 8)[place] for place in chosen]
    assert made.bits == pytest.approx(sum(map(math.prod, zip(bits, weights, strict=True))) / sum(weights))
    assert made.noise == pytest.approx(sum(row[place] for row, place in zip(noise, chosen, strict=True)))
    for other in itertools.product(range(3), repeat=len(layers)):
        pairs = list(itertools.permutations(range(len(layers)), 2))
        ordered = all(other[a] >= other[b] for a, b in pairs if noise[a][0] > noise[b][0])
        apart = all(other[a] == other[b] for a, b in pairs if noise[a][0] == noise[b][0])
        stored = sum((2, 4, 8)[place] * count for place, count in zip(other, weights, strict=True))
        if ordered and apart and stored <= budget * sum(weights):
            assert made.noise <= sum(row[place] for row, place in zip(noise, other, strict=True)) * (1 + 1e-9)


def test_a_proposal_that_cannot_be_is_refused() -> None:
    found = table([[0.5, 0.1, 0.01], [0.4, 0.2, 0.02]], [10, 30])
    assert [rule.scheme.name for rule in propose(found, bits=8).recipe.rules] == ["int8"]
    best = propose(found, bits=5).recipe.rules  # l0 at 8 bits and l1 at 4
    assert [(rule.scheme.name, rule.above) for rule in best] == [("int8", 0.45), ("int4", None)]
    for wrong in ({"bits": 1.9}, {"share": 1.5}, {"share": -0.1}):
        with pytest.raises(QuantizationError, match="2 to 8 bits on average"):
            propose(found, **wrong)
    with pytest.raises(QuantizationError, match="two schemes of different bits"):
        propose(Sensitivities(found.rows[::3], found.schemes[:1], 1), bits=2)
    refused = LayerSensitivity("l0", "int4", 10, 4, None, why="it takes no groups")
    with pytest.raises(QuantizationError, match="it takes no groups; measure schemes"):
        propose(Sensitivities((refused, *found.rows), found.schemes, 1), bits=4)


# ---- data, tasks, files ----


SMALL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unet": ("shapes", {"size": 8, "samples": 40}, {"width": 4}),
    "decoder": ("python-text", {"context": 8, "kilobytes": 20}, {"width": 16, "depth": 1}),
    "conv1d": ("signals", {"samples": 40, "length": 16}, {"width": 4, "depth": 1}),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_measure_is_that_of_the_task(name: str) -> None:
    data, data_options, options = SMALL[name]
    loaded = load_data(data, **data_options)
    found = measure_sensitivity(named_model(name, loaded, options=options), loaded, ["ternary"], samples=4)
    task = get_task(loaded.task, **loaded.task_options)
    assert list(found.scores) == ["loss", task.metric.name]
    assert found.rows
    assert all(row.scores.keys() == found.scores.keys() and (row.noise or 0) > 0 for row in found.rows)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["sensitivity", *arguments, "--samples", "64", "--quiet"])


def test_the_command_writes_a_table_that_rules_read_and_a_recipe_that_fits(tmp_path: Path) -> None:
    config = config_for("float")
    folder = str(save_checkpoint(tmp_path / "f", trained_a_little(config), config))
    (tmp_path / "tables").mkdir()
    file, written = tmp_path / "tables" / "t.json", tmp_path / "r.yaml"
    options = ("--scheme", "ternary", "--scheme", "int8", "-o", str(file))
    told = run(folder, *options, "--propose", "50%", "--recipe", str(written)).output
    assert "[1, 8, 8], 10 outputs, 64 samples of digits" in told
    measured = json.loads(file.read_text())
    layers = measured["of"]["ternary"]
    assert list(layers) == ["1", "3", "5"]
    assert f"{layers['3']['loss']:.4g}" in told
    first, rest = read_recipe(written).rules
    assert "{sensitivity: tables/t.json, of: ternary, above: " in written.read_text()
    assert dict(first.sensitivity or ()) == {name: row["noise"] for name, row in layers.items()}
    assert (first.scheme.name, rest.scheme.name) == ("int8", "ternary")
    report = json.loads(CliRunner().invoke(main, ["recipe", folder, "--recipe", str(written), "--json"]).output)
    assert f"proposed: {report['average_bits']:.2f} bits per weight" in told
    assert 2 < report["average_bits"] <= 5
    printed = run(folder, *options[:4], "--propose", "50%")
    assert printed.output.splitlines()[-1] == "- {rest: true, scheme: ternary}"


def test_a_rule_names_a_scheme_of_a_table_that_is_there(tmp_path: Path) -> None:
    found = table([[0.5, 0.1, 0.01], [0.4, 0.2, 0.02]], [10, 30])
    (tmp_path / "t.json").write_text(json.dumps(found.as_data()))
    (tmp_path / "one.json").write_text(json.dumps(Sensitivities(found.rows[::3], found.schemes[:1], 1).as_data()))
    (tmp_path / "other.json").write_text("{}")
    file = tmp_path / "r.yaml"

    def read(rule: str) -> dict[str, float]:
        file.write_text(f"- {{rest: true, scheme: int8}}\n- {{{rule}, above: 1e-2, scheme: int8}}\n")
        file.write_text("\n".join(reversed(file.read_text().splitlines())))
        return dict(read_recipe(file).rules[0].sensitivity or ())

    assert read("sensitivity: t.json, of: int4") == {"l0": 0.1, "l1": 0.2}
    assert read("sensitivity: one.json") == {"l0": 0.5, "l1": 0.4}
    for rule, message in {
        "sensitivity: t.json": "choose one with `of`: ternary, int4, int8",
        "sensitivity: t.json, of: ternery": "Did you mean 'ternary'",
        "sensitivity: other.json": "is not a table of sensitivities of version 1",
        "sensitivity: none.json": "No such file",
        "sensitivity: {l0: 0.1}, of: int4": "unknown key 'of'",
    }.items():
        with pytest.raises(UsageError, match=message) as refused:
            read(rule)
        assert str(refused.value).startswith(f"'{file}': rule 1: ")


def test_the_command_refuses_what_it_cannot_measure(tmp_path: Path) -> None:
    config = config_for("ternary")
    folder = str(save_checkpoint(tmp_path / "t", trained_a_little(config), config))
    for arguments, message in {
        (folder,): "is quantized, by 'ternary'",
        ("mlp",): "add --data",
        ("mlp", "--data", "digits", "--propose", "four"): "such as 4 or 30%",
        ("mlp", "--data", "digits", "--recipe", "r.yaml"): "add --propose",
        ("nothing",): "neither a model",
    }.items():
        result = run(*arguments)
        assert (result.exit_code, message in result.output) == (2, True), result.output
    with pytest.raises(UsageError, match="has inputs float32"):
        measure_sensitivity(named_model("mlp"), load_data("digits"), ["int4"])
