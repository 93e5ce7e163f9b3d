"""`subbyte.quantize` and `subbyte quantize`: a float checkpoint to a quantized one, which every command takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from float_nets import accuracy, digits, inputs_and_labels, trained
from saved_checkpoint import config_for
from torch.utils.data import TensorDataset

import subbyte
from subbyte.cli import main
from subbyte.errors import CheckpointError, DataError, UnknownNameError, UsageError
from subbyte.models import load_checkpoint, save_checkpoint
from subbyte.models.data import Data
from subbyte.models.post import PostResult, list_calibrators
from subbyte.models.quant import Rule, quantized_layers

WIDTHS = [32, 32]


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(config_for("float"), model="mlp", model_options={"hidden": WIDTHS}, data="digits")
    return save_checkpoint(
        tmp_path_factory.mktemp("float") / "f", trained(0, hidden=WIDTHS), config, {"accuracy": 1.0, "epochs": 3.0}
    )


def quantized(folder: Path, **fields: Any) -> PostResult:
    return subbyte.quantize(folder, progress=False, **fields)


@pytest.mark.parametrize("calibrator", list_calibrators())
def test_int8_loses_at_most_half_a_point(float_folder: Path, calibrator: str) -> None:
    result = quantized(float_folder, calibrator=calibrator)
    assert result.float_accuracy == accuracy(load_checkpoint(float_folder).model) > 0.93
    assert result.accuracy == accuracy(result.model)
    assert result.float_accuracy - result.accuracy <= 0.005
    assert result.samples == 512


def test_the_checkpoint_is_the_model_and_says_how_it_was_made(float_folder: Path, tmp_path: Path) -> None:
    fields = {"scheme": "int4", "scheme_options": {"group_size": 16}, "calibrator": "percentile(percent=99.9)"}
    result = quantized(float_folder, out=tmp_path / "q", samples=100, batch_size=7, seed=3, **fields)
    loaded = load_checkpoint(tmp_path / "q")
    images, _ = inputs_and_labels(test=True)
    assert torch.equal(loaded.model(images), result.model(images))
    assert loaded.config.scheme == "int4"
    assert loaded.config.training["post_training"] == {
        "data": "digits",
        "data_options": {},
        "samples": 100,
        "batch_size": 7,
        "seed": 3,
        "calibrator": "percentile(percent=99.9)",
        "weights": "mse",
        "steps": [],
        "from": load_checkpoint(float_folder).sha256,
    }
    assert loaded.metrics == {
        "epochs": 3.0,
        "accuracy": result.accuracy,
        "float_accuracy": result.float_accuracy,
    }
    again = quantized(float_folder, samples=100, batch_size=7, seed=3, **fields)
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name


def test_a_recipe_decides_by_layer(float_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("- {match: last, scheme: int8}\n- {rest: true, scheme: {weights: ternary, activations: int4}}\n")
    by_file = quantized(float_folder, recipe=str(file), out=tmp_path / "a")
    rules = [Rule("int8", match="last"), Rule(by_file_scheme())]
    by_rules = quantized(float_folder, recipe=rules, out=tmp_path / "b")
    for folder, result in ((tmp_path / "a", by_file), (tmp_path / "b", by_rules)):
        model = load_checkpoint(folder).model
        formats = [layer.weight_quantizer.format.name for layer in quantized_layers(model).values()]
        assert formats == ["ternary", "ternary", "int8"]
        for name, value in model.state_dict().items():
            assert torch.equal(value, result.model.state_dict()[name]), name


def by_file_scheme() -> Any:
    from subbyte.models.quant import combine

    return combine("ternary", "int4")


def test_the_command_line_goes_on_to_export_and_check(float_folder: Path, tmp_path: Path) -> None:
    run = CliRunner()
    folder, file = str(tmp_path / "q"), str(tmp_path / "q.onnx")
    arguments = ["quantize", str(float_folder), "--scheme", "int8", "--calibrator", "percentile", "-o", folder]
    done = run.invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "calibrated on 512 samples, test accuracy" in done.output
    assert run.invoke(main, ["export", folder, "-o", file]).exit_code == 0
    checked = run.invoke(main, ["check", folder, file, "--data", "digits"])
    assert checked.exit_code == 0, checked.output
    assert "onnxruntime: all" in checked.output
    refused = run.invoke(main, arguments)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    assert run.invoke(main, [*arguments, "--overwrite", "--samples", "64"]).exit_code == 0
    assert load_checkpoint(folder).config.training["post_training"]["samples"] == 64


# ---- bad input: an error that says it, and nothing written ----


def of_tensors(images: torch.Tensor, labels: torch.Tensor) -> Data:
    return replace(digits(), name="own", train=TensorDataset(images, labels))


def test_bad_calibration_data_is_refused_and_nothing_is_written(float_folder: Path, tmp_path: Path) -> None:
    images, labels = inputs_and_labels()
    broken = images.clone()
    broken[7, 0, 3, 3] = torch.nan
    cases = (
        (of_tensors(images[labels == 4], labels[labels == 4]), {}, "are of class 4, of 10"),
        (of_tensors(torch.zeros_like(images), labels), {}, "all values of its 512 samples are 0"),
        (of_tensors(broken[:40], labels[:40]), {}, "holds NaN or infinity"),
        (of_tensors(images[:40], labels[:40]), {"samples": 41}, "41 calibration samples .* has 40"),
        (replace(digits(), shape=(1, 4, 16)), {}, r"inputs are \[1, 4, 16\], the checkpoint's are \[1, 8, 8\]"),
    )
    out = tmp_path / "q"
    for data, fields, words in cases:
        with pytest.raises(DataError, match=words):
            quantized(float_folder, data=data, out=out, **fields)
    assert not out.exists()


def test_wrong_requests_are_refused_before_any_work(float_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    cases: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"scheme": "int9"}, UnknownNameError, "Did you mean 'int8'"),
        ({"scheme": "float"}, UsageError, "leaves every layer in float"),
        ({"scheme": "int4", "scheme_options": {"group_size": 0}}, UsageError, "scheme 'int4'"),
        ({"scheme": "int4", "recipe": [Rule("int8")]}, UsageError, "a recipe and a scheme"),
        ({"samples": 0}, UsageError, "samples is 0"),
        ({"calibrator": "kl"}, UnknownNameError, "calibrator 'kl'"),
        ({"steps": ["adaroun"]}, UnknownNameError, "post-training step"),
        ({"sample": 3}, UnknownNameError, "Did you mean 'samples'"),
        ({"out": float_folder}, UsageError, "folder of the float checkpoint"),
    )
    before = (float_folder / "checkpoint.json").read_bytes()
    for fields, kind, words in cases:
        with pytest.raises(kind, match=words):
            quantized(float_folder, **{"out": out, **fields})
    assert not out.exists()
    assert (float_folder / "checkpoint.json").read_bytes() == before


def test_a_quantized_checkpoint_is_refused(float_folder: Path, tmp_path: Path) -> None:
    quantized(float_folder, out=tmp_path / "q")
    with pytest.raises(CheckpointError, match="is a 'int8' checkpoint, quantized already"):
        quantized(tmp_path / "q", out=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_was_there_stays_whole_where_quantizing_fails(float_folder: Path, tmp_path: Path) -> None:
    quantized(float_folder, out=tmp_path / "q")
    before = {file.name: file.read_bytes() for file in (tmp_path / "q").iterdir()}
    images, labels = inputs_and_labels()
    with pytest.raises(DataError):
        quantized(float_folder, data=of_tensors(0 * images, labels), out=tmp_path / "q", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "q").iterdir()} == before
    assert json.loads(before["checkpoint.json"])["config"]["scheme"] == "int8"
