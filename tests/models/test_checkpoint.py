"""Checkpoints: what is saved comes back bit for bit; what is damaged or of another model is refused by name."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved_checkpoint import config_for, rewrite, trained_a_little
from torch import nn

from subbyte import __version__
from subbyte.errors import CheckpointError, UnknownNameError, UsageError
from subbyte.models import load_checkpoint, quantize, save_checkpoint
from subbyte.models.checkpoint import read_config, read_metrics, versions, weights_file
from subbyte.models.checkpoint_files import DESCRIPTION


@pytest.mark.parametrize(
    ("scheme", "name", "options"),
    [
        ("float", "mlp", {}),
        ("int8", "resnet8", {}),
        ("int4", "mlp", {"group_size": 4}),
        ("ternary", "resnet8", {}),
        ("ternary", "vit_micro", {"statistic": "median"}),
        ("pow2", "ds_cnn", {}),
        ("binary", "resnet8", {}),
    ],
)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, scheme: str, name: str, options: dict[str, Any]) -> None:
    config = config_for(scheme, name, scheme_options=options)
    model = trained_a_little(config)
    save_checkpoint(tmp_path, model, config, {"accuracy": 0.25, "loss": 1.5})
    loaded = load_checkpoint(tmp_path)
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))
    assert loaded.config == config
    assert loaded.metrics == {"accuracy": 0.25, "loss": 1.5}
    assert not loaded.model.training
    assert loaded.config.input_shape == (1, 1, 8, 8)


def test_the_description_is_read_without_the_tensors(saved: Path) -> None:
    weights_file(saved).unlink()
    assert read_config(saved).scheme == "ternary"
    assert read_metrics(saved) == {"accuracy": 0.5}
    with pytest.raises(CheckpointError, match=r"cannot read model-[0-9a-f]{16}\.safetensors"):
        load_checkpoint(saved)


def test_saving_leaves_no_other_files_and_replaces_the_old(saved: Path) -> None:
    config = config_for("ternary")
    save_checkpoint(saved, trained_a_little(config), config, {"accuracy": 0.75})
    assert sorted(saved.iterdir()) == [saved / DESCRIPTION, weights_file(saved)]
    assert load_checkpoint(saved).metrics == {"accuracy": 0.75}


def test_a_module_of_the_callers_own(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    config = config_for("int8", model=None, model_options={})
    model = quantize(make(), "int8", example=torch.randn(4, 1, 8, 8))
    model(torch.randn(4, 1, 8, 8))
    save_checkpoint(tmp_path, model, config)
    with pytest.raises(CheckpointError, match="pass it"):
        load_checkpoint(tmp_path)
    loaded = load_checkpoint(tmp_path, make())
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.model(images), model.eval()(images))


# ---- another model ----


def test_other_shapes_name_the_tensor(saved: Path) -> None:
    text = (saved / DESCRIPTION).read_text().replace('"outputs": 10', '"outputs": 11')
    (saved / DESCRIPTION).write_text(text)
    with pytest.raises(CheckpointError, match=r"tensor '5\..*' is .*\[10.*\], expected .*\[11.*\].*another model"):
        load_checkpoint(saved)


def test_another_architecture_or_scheme_names_the_tensor(saved: Path) -> None:
    whole = (saved / DESCRIPTION).read_text()
    (saved / DESCRIPTION).write_text(whole.replace('"scheme": "ternary"', '"scheme": "float"'))
    with pytest.raises(CheckpointError, match=r"tensor '1\.weight' is missing"):
        load_checkpoint(saved)
    description = json.loads(whole)
    description["config"] |= {"model": "resnet8", "model_options": {}}
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"tensor 'stem\.0.*' is missing"):
        load_checkpoint(saved)


def test_a_surplus_tensor_is_refused(saved: Path) -> None:
    tensors = load_file(weights_file(saved))
    tensors["extra"] = torch.zeros(1)
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match="tensor 'extra' is not in the model"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "mpl", "Did you mean 'mlp'"),
        ("scheme", "ternery", "Did you mean 'ternary'"),
    ],
)
def test_unknown_names_suggest_the_nearest(saved: Path, field: str, value: str, message: str) -> None:
    description = json.loads((saved / DESCRIPTION).read_text())
    description["config"][field] = value
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(UnknownNameError, match=message):
        load_checkpoint(saved)


# ---- damage ----


def test_truncated_tensors_are_refused(saved: Path) -> None:
    whole = weights_file(saved).read_bytes()
    for keep in (0, 7, 100, len(whole) - 1):
        weights_file(saved).write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"safetensors: damaged or truncated"):
            load_checkpoint(saved)


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    content = bytearray(weights_file(saved).read_bytes())
    content[-1] ^= 1
    weights_file(saved).write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(saved)


def test_a_header_that_lies_about_its_length_is_refused(saved: Path) -> None:
    weights_file(saved).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved)


def test_a_pickle_is_refused_and_never_run(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (witness,))

    weights_file(saved).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        load_checkpoint(saved)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.update(kind="something"), "not the description"),
        (lambda d: d.pop("config"), "'config' is NoneType, expected dict"),
        (lambda d: d["config"].update(outputs="ten"), "'outputs' is str, expected int"),
        (lambda d: d["config"].update(size=[8]), "malformed"),
        (lambda d: d["config"].update(surprise=1), "unknown field 'surprise'"),
        (lambda d: d["config"].update(normalization={"largest": 1}), "malformed"),
        (lambda d: d["config"].update(model_options={"hidden": "wide"}), "cannot be made from its options"),
        (lambda d: d["metrics"].update(accuracy=[1]), "malformed"),
        (lambda d: d["weights"].pop("sha256"), "'sha256' is NoneType"),
    ],
)
def test_a_malformed_description_is_refused(saved: Path, change: Any, message: str) -> None:
    description = json.loads((saved / DESCRIPTION).read_text())
    change(description)
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_damaged_json_is_refused(saved: Path) -> None:
    whole = (saved / DESCRIPTION).read_bytes()
    for content in (whole[:-30], b"", b"\xff\xfe", b"[" * 100_000):
        (saved / DESCRIPTION).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
            load_checkpoint(saved)


def test_an_option_that_the_model_does_not_have(saved: Path) -> None:
    description = json.loads((saved / DESCRIPTION).read_text())
    description["config"]["model_options"] = {"depth": 3}
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(UsageError, match="no option 'depth'"):
        load_checkpoint(saved)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_the_version_is_that_of_the_code_not_of_an_older_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.0.1")
    assert versions() == {"subbyte": __version__, "torch": "0.0.1", "lightning": "0.0.1"}
