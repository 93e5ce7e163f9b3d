"""Requests that cannot be right: exit code 2, one line that suggests what to do, no traceback without --debug."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from subbyte.cli import COMMANDS, main
from subbyte.models import list_tasks


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_help_lists_every_command_with_a_sentence() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        line = next(line for line in result.output.splitlines() if line.strip().startswith(f"{name} "))
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("trian",), "Did you mean 'train'"),
        (("train", "resnet9", "--out", "x"), "Did you mean 'resnet8'"),
        (("train", "mlp", "--scheme", "ternery", "--out", "x"), "Did you mean 'ternary'"),
        (("train", "mlp", "--data", "digit", "--out", "x"), "Did you mean 'digits'"),
        (("train", "mlp", "--loss", "cross_entropy", "--out", "x"), "Did you mean 'cross-entropy'"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_nearest_name(
    arguments: tuple[str, ...], suggestion: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert suggestion in result.output
    assert "Traceback" not in result.output


def test_a_missing_file_is_a_usage_error() -> None:
    for arguments in (("compile", "no.onnx"), ("run", "no.subbyte", "--input", "x.npy"), ("bench", "no.subbyte")):
        result = call(*arguments)
        assert result.exit_code == 2, (arguments, result.output)


def test_debug_shows_the_error_itself() -> None:
    result = call("--debug", "train", "resnet9", "--out", "x")
    assert type(result.exception).__name__ == "UnknownNameError"


@pytest.mark.parametrize("name", ["targets", "schemes", "models", "formats"])
def test_registries_print_a_line_for_each_entry(name: str) -> None:
    result = call(name)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) >= 2
    assert all(len(line.split()) > 2 for line in lines)


def test_losses_print_needs_options_and_source_of_each() -> None:
    lines = [line.split(maxsplit=1) for line in call("losses").output.splitlines()]
    names, needs, options, sources = (lines[part::4] for part in range(4))
    assert {name for name, _ in names} >= {"cross-entropy", "kd", "supcon", "moco", "clip", "huber"}
    assert [word for word, _ in (*needs, *options, *sources)] == sorted(
        ["needs", "options", "source"] * len(names), key=["needs", "options", "source"].index
    )
    of_kd = [name for name, _ in names].index("kd")
    assert needs[of_kd][1] == "label or soft, logits, teacher.logits"
    assert options[of_kd][1].startswith("temperature=2.0 (in (0, inf)), alpha=0.5 (in [0, 1])")
    assert sources[of_kd][1].startswith("Hinton et al.")


def test_tasks_print_loss_metric_and_options_of_each() -> None:
    lines = [line.split(maxsplit=1) for line in call("tasks").output.splitlines()]
    names, losses, metrics, options = (lines[part::4] for part in range(4))
    assert [name for name, _ in names] == list_tasks()
    assert {word for word, _ in losses} == {"loss"}
    of_text = [name for name, _ in names].index("language-modelling")
    assert metrics[of_text] == ["metric", "bits per token, lower is better"]
    assert options[of_text] == ["options", "unit=token"]


def test_an_output_in_a_missing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    here = tmp_path / "x"
    here.write_bytes(b"")
    for arguments in (
        ("run", str(here), "--input", "x.npy", "--output", str(tmp_path / "no" / "y.npy")),
        ("bench", str(here), "--json", str(tmp_path / "no" / "b.json")),
        ("compile", str(here), "-o", str(tmp_path / "no" / "x.subbyte")),
        ("export", str(tmp_path), "-o", str(tmp_path / "no" / "x.onnx")),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert "no" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_options_of_the_comparison_need_a_baseline(tmp_path: Path) -> None:
    bundle = tmp_path / "x.subbyte"
    bundle.write_bytes(b"")
    result = call("bench", str(bundle), "--data", "digits")
    assert result.exit_code == 2
    assert "--baseline" in result.output


def test_doctor_names_the_extra_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subbyte.judge.doctor.PACKAGES", {"no-such-package": "train"})
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "pip install 'subbyte[train]'" in result.output


@pytest.mark.parametrize("option", ["--devices", "--strategy"])
def test_what_lightning_does_not_know_is_a_usage_error(option: str, tmp_path: Path) -> None:
    result = call("train", "mlp", "--epochs", "1", "--out", str(tmp_path / "run"), option, "foo")
    assert result.exit_code == 2, result.output
    assert "foo" in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_read_is_never_replaced(tmp_path: Path) -> None:
    """`-o` with the name of the input would leave nothing to go back to."""
    here = tmp_path / "x"
    run = tmp_path / "run"
    run.mkdir()
    for path in (here, run / "model-0123456789abcdef.safetensors"):
        path.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(here)
    for arguments in (
        ("compile", here, "-o", here),
        ("compile", here, "-o", link),
        ("run", here, "--input", "x.npy", "--output", here),
        ("run", tmp_path / "link", "--input", f"image={here}", "--output", here),
        ("bench", here, "--json", here),
        ("bench", here, "--baseline", "onnxruntime", "--onnx", link, "--json", link),
        ("export", run, "-o", run / "model-0123456789abcdef.safetensors"),
    ):
        result = call(*map(str, arguments))
        assert result.exit_code == 2, (arguments, result.output)
        assert "a file this command reads" in result.output
    assert here.read_bytes() == (run / "model-0123456789abcdef.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("group_size=abc", "'abc', expected one of: int, None"),
        ("group_size=0", "at least 1"),
        ("keep=99", "2 to 8 bits"),
        ("activations=channel", "expected one of: 'tensor', 'token'"),
    ],
)
def test_a_value_that_an_option_of_a_scheme_cannot_have_is_a_usage_error(
    option: str, words: str, tmp_path: Path
) -> None:
    result = call("train", "mlp", "--scheme", "int4", "--scheme-option", option, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model-option", "wide=32"), "no option 'wide'; its options: width, shortcut, activation"),
        (("--model-option", "width=1.5"), "1.5, expected one of: int"),
        (("--model-option", "width=0"), "at least 1"),
        (("--model-option", "width"), "--model-option takes NAME=VALUE, got 'width'"),
        (("--loss-option", "label_smoothing=much"), "'much', expected one of: float"),
        (("--loss-option", "label_smoothing=2"), "in [0, 1)"),
        (("--loss-option", "=3"), "--loss-option takes NAME=VALUE, got '=3'"),
        (("--optimizer", "adam"), "adamw, sgd"),
    ],
)
def test_options_of_models_losses_and_the_optimizer(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = call("train", "resnet8", *arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_train_takes_what_python_takes_and_does_not_replace_what_it_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--model-option", "hidden=24,16", "--loss-option", "label_smoothing=0.1", "--optimizer", "sgd"]
    command = ["train", "mlp", *options, "--epochs", "1", "--quiet", "--out", str(run)]
    assert call(*command).exit_code == 0
    config = json.loads((run / "checkpoint.json").read_text())["config"]
    assert config["model_options"] == {"hidden": [24, 16]}
    assert config["training"]["loss_options"] == {"label_smoothing": 0.1}
    assert config["training"]["optimizer"] == "sgd"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = call(*command)
    assert result.exit_code == 2, result.output
    for word in ("a ternary mlp (after epoch 1", "--resume", "--overwrite", "--out"):
        assert word in result.output
    assert call(*command, "--resume", "--overwrite").exit_code == 2
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert call(*command, "--resume").exit_code == 0
    assert call(*command, "--overwrite").exit_code == 0


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    """With what it is and what was expected; exit 2 for a file in the place of a folder, or the other way round."""
    import numpy as np
    import onnx
    import torch
    from onnx import helper
    from safetensors.torch import save_file

    run, array, tensors, archive, model = (tmp_path / n for n in ("run", "x.npy", "m.safetensors", "m.pt", "m.bin"))
    run.mkdir()
    (run / "checkpoint.json").write_text("{}")
    np.save(array, np.zeros(3))
    save_file({"w": torch.zeros(3)}, tensors)
    torch.save({"w": torch.zeros(3)}, archive)
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1,)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), model)
    out = ("-o", str(tmp_path / "out"))
    for command, path, status, words in (
        ("compile", run, 2, "it is the folder of a checkpoint; export it first"),
        ("inspect", run, 2, "it is the folder of a checkpoint; export it first"),
        ("compile", tmp_path, 2, "a folder without a checkpoint in it"),
        ("compile", array, 1, "an array saved by NumPy; expected a .onnx file"),
        ("compile", tensors, 1, "a safetensors file: tensors without a graph; expected a .onnx file"),
        ("inspect", archive, 1, "a file of torch.save (.pt, .pth); expected a .onnx file"),
        ("export", model, 2, "it is an ONNX model; expected the folder that"),
        ("export", tensors, 2, "a safetensors file: tensors without a graph; expected the folder that"),
        ("export", tmp_path, 1, "a folder without a checkpoint in it; expected the folder that"),
        ("run", model, 1, "an ONNX model, not yet a bundle: `subbyte compile"),
    ):
        options = () if command == "inspect" else ("--input", str(array)) if command == "run" else out
        result = call(command, str(path), *options)
        assert result.exit_code == status, (command, path, result.output)
        assert words in result.output
        assert "again" not in result.output
    assert not (tmp_path / "out").exists()


def test_folders_of_train_are_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for option, name in (("--out", "file"), ("--init", "nothing"), ("--teacher", "nothing")):
        result = call("train", "mlp", "--out", str(tmp_path / "run"), option, str(tmp_path / name))
        assert result.exit_code == 2, result.output
        assert name in result.output
    assert call("export", str(tmp_path / "nothing"), "-o", str(tmp_path / "m.onnx")).exit_code == 2
