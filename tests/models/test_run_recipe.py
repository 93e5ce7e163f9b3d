"""A recipe in place of a scheme, from its file through training and resuming to the layers of an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import subbyte
from subbyte.cli import main
from subbyte.errors import CheckpointError, QuantizationError, UsageError
from subbyte.export import inspect
from subbyte.models import Run, from_datasets, load_checkpoint, train
from subbyte.models.checkpoint import weights_file
from subbyte.models.quant import (
    Recipe,
    Rule,
    combine,
    quantize,
    quantized_layers,
    recipe_data,
    recipe_from_data,
    recipe_text,
)
from subbyte.models.train.run import CONFIGURATION, changed, read_run

RULES = Recipe(
    (
        Rule("int8", match="first"),
        Rule(combine("ternary", "int8", per="token"), name="3"),
        Rule("float", name="7"),
        Rule("int4"),
    )
)
TEXT = """\
- {match: first, scheme: int8}
- {name: '3', scheme: {weights: ternary, activations: int8, per: token}}
- {name: '7', scheme: float}
- {rest: true, scheme: int4}
"""
FORMATS = {"1": "int8", "3": "ternary", "5": "int4"}


def data() -> Any:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    images = torch.randn(48, 1, 4, 4, generator=generator) + nn.functional.one_hot(labels, 4).reshape(-1, 1, 4, 1)
    return from_datasets(TensorDataset(images, labels), TensorDataset(images, labels), classes=3)


def quick(folder: Path, recipe: Any, **fields: Any) -> Any:
    fields = {"epochs": 2, "batch_size": 8, "accelerator": "cpu", "progress": False, **fields}
    return train("mlp", data=data(), model_options={"hidden": [8, 8, 8]}, out=folder, recipe=recipe, **fields)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    return path


def test_a_recipe_trains_its_layers_and_its_run_needs_no_file(tmp_path: Path, file: Path) -> None:
    first = quick(tmp_path / "run", file)
    file.unlink()
    written = read_run(first.folder / CONFIGURATION)
    assert (written.scheme, recipe_from_data(written.recipe)) == (None, RULES)
    assert recipe_text(RULES) in (first.folder / CONFIGURATION).read_text()
    again = train(written, data=data(), out=tmp_path / "again", progress=False)
    one, two = (load_file(weights_file(run.folder)) for run in (first, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    loaded = load_checkpoint(first.folder)
    assert (loaded.config.scheme, recipe_from_data(loaded.config.recipe)) == ("recipe", RULES)
    layers = quantized_layers(loaded.model)
    assert {name: layer.weight_quantizer.format.name for name, layer in layers.items()} == FORMATS
    report = subbyte.export(first.folder, tmp_path / "t.onnx")
    assert report.verification is not None
    assert report.verification.inexact == ("/7/Gemm",)  # the float layer
    assert report.verification.outputs[0].max_error < 1e-6
    seen = inspect(tmp_path / "t.onnx")
    assert [layer.weight_format for layer in seen.layers] == [*FORMATS.values(), "float32"]
    assert [layer.activation_format for layer in seen.layers] == ["int8", "int8 per token", "uint8", "float32"]


def test_a_resumed_run_has_the_recipe_that_it_began_with(tmp_path: Path, file: Path) -> None:
    quick(tmp_path / "run", file, epochs=1)
    quick(tmp_path / "run", recipe_data(RULES), epochs=2, resume=True)
    other = Recipe((*RULES.rules[:-1], Rule("int8")))
    with pytest.raises(CheckpointError, match=r"its recipe was .*int4.* and now is .*int8"):
        quick(tmp_path / "run", other, epochs=3, resume=True)


def test_a_recipe_takes_the_place_of_a_scheme(tmp_path: Path, file: Path) -> None:
    assert (Run().scheme, Run(recipe="r.yaml").scheme) == ("ternary", None)
    for options in ({"scheme": "int8"}, {"scheme_options": {"keep": None}}):
        with pytest.raises(UsageError, match="leave one of the two out"):
            Run(recipe=str(file), **options)
    by_scheme = Run(scheme="int4", scheme_options={"group_size": 8}).as_dict()
    assert Run(**changed(by_scheme, {"recipe": "r.yaml"})) == Run(recipe="r.yaml")
    assert Run(**changed(Run(recipe="r.yaml").as_dict(), {"scheme": "int4"})) == Run(scheme="int4")
    assert Run(recipe=RULES) == Run(recipe=RULES.rules) == Run(recipe=recipe_data(RULES))


def test_the_command_names_the_file_and_the_rule_that_does_not_fit(tmp_path: Path) -> None:
    bad = {
        "- {name: x, scheme: ternery}\n": (2, "rule 1: unknown scheme 'ternery'. Did you mean 'ternary'?"),
        "- {name: fc.*, scheme: int8}\n": (1, "rule 1 (name fc.*: int8) matches no layer; "),
        "- {name: '5', scheme: int8}\n- {match: last, scheme: int4}\n": (
            1,
            "rule 2 (last: int4) contradicts rule 1 (n",
        ),
        "- {type: Linear, scheme: {weights: lookup, activations: int8}}\n": (2, "rule 1: unknown weight quantizer"),
        "- {name: '1', scheme: {name: int4, group_size: 0}}\n": (2, "rule 1: group size must be at least 1"),
    }
    path = tmp_path / "r.yaml"
    for text, (status, message) in bad.items():
        path.write_text(text + "- {rest: true, scheme: ternary}\n")
        command = ["train", "mlp", "--recipe", str(path), "--out", str(tmp_path / "run"), "--quiet", "--epochs", "1"]
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, f"error: '{path}': {message}" in result.output) == (status, True), result.output
        assert not (tmp_path / "run").exists()


def test_a_layer_that_cannot_take_its_scheme_is_named_with_its_rule() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 2))
    recipe = Recipe((Rule("int4", match="last"), Rule("int8")), source="r.yaml")
    with pytest.raises(QuantizationError, match=r"'r\.yaml': rule 2 \(rest: int8\): '0' pads with 'reflect'"):
        quantize(model, recipe, example=torch.randn(1, 1, 4, 4))
