"""The main job, end to end on real digits: checkpoint, ONNX, bundle; the same integers at every stage."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from this_cpu import needs
from torch import nn
from torch.utils.data import TensorDataset

import subbyte
from subbyte.cli import main
from subbyte.models.checkpoint import load_checkpoint
from subbyte.models.data import Data, from_datasets, load_data, register
from subbyte.runtime.bundle import open_bundle
from subbyte.tvm_kernels.machines import get_target

SCHEMES = ("int8", "int4", "ternary", "pow2", "binary")


def pipeline(model: str, scheme: str, folder: Path, target: str = "host") -> tuple[Path, Path, Path]:
    """Train one epoch, export, compile; the three files."""
    subbyte.train(model, data="digits", scheme=scheme, epochs=1, out=folder / "run", progress=False)
    subbyte.export(folder / "run", folder / "model.onnx")
    subbyte.compile(folder / "model.onnx", folder / "model.subbyte", target=target, strict=True)
    return folder / "run", folder / "model.onnx", folder / "model.subbyte"


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return pipeline("resnet8", "ternary", tmp_path_factory.mktemp("ternary"))


def call(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_bundle_has_the_metadata_of_its_file(ternary: tuple[Path, Path, Path]) -> None:
    _, file, bundle = ternary
    known = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(known["subbyte.class_names"]) == [str(digit) for digit in range(10)]
    assert open_bundle(bundle).manifest.source["metadata"] == known


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_gives_the_same_integers_at_every_stage(scheme: str, tmp_path: Path) -> None:
    report = subbyte.check(*pipeline("resnet8", scheme, tmp_path), data="digits", limit=64)
    assert not report.diverged, report.findings
    assert [stage.name for stage in report.stages][2:] == ["onnxruntime", "bundle"]
    for stage in report.stages[1:]:
        assert stage.differing_codes == 0
        assert stage.changed_predictions == 0
        assert stage.max_error == 0.0
    assert report.quantized_layers >= 9
    assert str(report).startswith("64 inputs")
    assert str(report).count(" 0 differing integers") == len(report.stages)


def test_a_model_of_the_users_own_is_checked_as_it_is_exported(tmp_path: Path) -> None:
    """A command cannot make the model, and says what in Python can."""

    def own() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    folder, file, bundle = tmp_path / "run", tmp_path / "m.onnx", tmp_path / "m.subbyte"
    subbyte.train(own(), data="digits", scheme="int4", epochs=1, out=folder, progress=False)
    loaded = load_checkpoint(folder, own())
    subbyte.export(loaded, file)
    subbyte.compile(file, bundle)
    report = subbyte.check(loaded, file, bundle, data="digits", limit=32)
    assert not report.diverged, report.findings
    assert report.quantized_layers == 2
    assert [stage.differing_codes for stage in report.stages] == [0] * 4
    refused = CliRunner().invoke(main, ["check", str(folder), str(file)])
    assert refused.exit_code == 1
    assert "load_checkpoint(folder, model=MyModel()), whose result `subbyte.export` and `subbyte.check` take" in (
        refused.output
    )


@pytest.mark.parametrize(
    "target", [pytest.param(name, marks=needs(get_target(name).features)) for name in ("x86-64-v3", "x86-64-v4")]
)
def test_lesser_processors_get_the_same_integers(target: str, tmp_path: Path) -> None:
    report = subbyte.check(*pipeline("ds_cnn", "int4", tmp_path, target), data="digits", limit=32)
    assert not report.diverged, report.findings
    assert report.stages[-1].max_error == 0.0


def test_a_transformer_agrees_within_rounding_ties(tmp_path: Path) -> None:
    report = subbyte.check(*pipeline("vit_micro", "ternary", tmp_path), data="digits", limit=64)
    assert report.quantized_layers > 8
    for stage in report.stages[1:]:
        assert stage.changed_predictions <= 1
        assert stage.differing_codes < 1000  # of 1.4 million
    assert not report.diverged
    assert not any("far from any rounding tie" in line or "outputs differ" in line for line in report.findings)


def test_the_session_runs_a_digit(ternary: tuple[Path, Path, Path]) -> None:
    image, _ = load_data("digits").test[0]
    with subbyte.load(ternary[2]) as session:
        logits = session.run(np.asarray(image)[None])
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (1, 10)
    assert logits.dtype == np.float32


def test_run_writes_what_the_session_gives(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    image = np.asarray(load_data("digits").test[0][0])[None]
    np.save(tmp_path / "x.npy", image)
    call("run", ternary[2], "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    with subbyte.load(ternary[2]) as session:
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), session.run(image))


def test_the_bench_gives_a_verdict_with_provenance(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    saved = tmp_path / "b.json"
    text = call("bench", ternary[2], "--baseline", "onnxruntime", "--data", "digits", "--seconds", 0.2, "--json", saved)
    assert "Verdict" in text
    found = json.loads(saved.read_text())
    contenders = {c["name"]: c for c in found["verdict"]["contenders"]}
    assert set(contenders) == {"subbyte", "onnxruntime float32", "onnxruntime int8"}
    assert contenders["onnxruntime float32"]["nbytes"] > contenders["subbyte"]["nbytes"]
    assert all(c["score"] is not None for c in contenders.values())
    assert found["latency_ms"]["p50"] > 0
    assert "modelled" in json.dumps(found)


def test_the_verdict_scores_on_the_data_trained_on(ternary: tuple[Path, Path, Path]) -> None:
    text = call("bench", ternary[2], "--baseline", "onnxruntime", "--iterations", 1, "--seconds", 0.05)
    assert "accuracy: on the test set of digits" in text
    assert text.count("points of accuracy") >= 2


def test_data_that_does_not_fit_is_refused_before_any_work(
    ternary: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "_DATA", dict(register._DATA))
    register.register_data("two-by-two", summary="images too small for any model")(_two_by_two)
    run, file, bundle = map(str, ternary)
    for arguments in (
        ["check", run, file, bundle, "--data", "two-by-two"],
        ["bench", bundle, "--baseline", "onnxruntime", "--data", "two-by-two"],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, result.output
        assert "inputs of float32 [1, 2, 2], the model expects float32 [1, 8, 8]" in result.output
        assert "latency" not in result.output


def _two_by_two(path: Path | None = None) -> Data:
    images = TensorDataset(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    return from_datasets(images, images, classes=2)


def test_check_says_where_a_tampered_file_diverges(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(ternary[1])
    for tensor in model.graph.initializer:
        if tensor.name == "stages.1.0.conv1.output_scale":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.5).astype(np.float32).tobytes()
    onnx.save(model, tmp_path / "model.onnx")
    result = CliRunner().invoke(main, ["check", str(ternary[0]), str(tmp_path / "model.onnx"), "--data", "digits"])
    assert result.exit_code == 1
    line = next(line for line in result.output.splitlines() if "first divergent layer" in line)
    assert "/stages/1/0/conv2/" in line
    assert "far from any rounding tie" in result.output.replace("\n", " ")


def test_inspect_shows_files_and_bundles(ternary: tuple[Path, Path, Path]) -> None:
    assert "ternary" in call("inspect", ternary[1])
    assert "QuantizedProduct" in call("inspect", ternary[2])


def test_a_failed_compilation_leaves_no_file(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(ternary[1].read_bytes()[:2000])
    result = CliRunner().invoke(main, ["compile", str(cut), "-o", str(tmp_path / "cut.subbyte")])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.onnx"]


def test_an_unknown_target_is_suggested(ternary: tuple[Path, Path, Path]) -> None:
    result = CliRunner().invoke(main, ["compile", str(ternary[1]), "--target", "cortex-a52"])
    assert result.exit_code == 2
    assert "Did you mean 'cortex-a53'" in result.output


def test_wrong_inputs_are_refused_in_one_line(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    cases = {
        "shape": np.zeros((1, 1, 9, 8), np.float32),
        "dtype": np.zeros((1, 1, 8, 8), np.float64),
        "nan": np.full((1, 1, 8, 8), np.nan, np.float32),
    }
    for name, array in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        arguments = ["run", str(ternary[2]), "--input", str(tmp_path / f"{name}.npy"), "--output", str(tmp_path / "y")]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, (name, result.output)
        assert result.output.startswith("error: "), name
        assert not (tmp_path / "y").exists()


def test_names_of_inputs_are_checked(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    for given in ([f"foo={tmp_path}/x.npy"], [f"{tmp_path}/x.npy", f"{tmp_path}/x.npy"]):
        options = [part for item in given for part in ("--input", item)]
        result = CliRunner().invoke(main, ["run", str(ternary[2]), *options])
        assert result.exit_code == 2, result.output


def test_a_bundle_of_another_file_is_refused(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(ternary[1])
    model.producer_version = "another"
    onnx.save(model, tmp_path / "other.onnx")
    for arguments in (
        ["check", str(ternary[0]), str(tmp_path / "other.onnx"), str(ternary[2])],
        ["bench", str(ternary[2]), "--baseline", "onnxruntime", "--onnx", str(tmp_path / "other.onnx")],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert "was not compiled from" in result.output


def test_a_node_named_like_markup_is_shown_as_it_is(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(ternary[1])
    next(node for node in model.graph.node if node.op_type == "Conv").name = "/x[/bold]"
    onnx.save(model, tmp_path / "named.onnx")
    assert "/x[/bold]" in call("inspect", tmp_path / "named.onnx")


def test_a_bundle_alone_replays_its_golden_run(ternary: tuple[Path, Path, Path], tmp_path: Path) -> None:
    assert call("check", ternary[2]).endswith("golden outputs: equal\n")
    call("check", ternary[2], "--trace", tmp_path / "new" / "trace")
    assert (tmp_path / "new" / "trace" / "0-0.npy").is_file()
    result = CliRunner().invoke(main, ["check", str(ternary[2]), "--data", "digits"])
    assert result.exit_code == 2, result.output


def test_options_of_a_scheme_are_taken_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--scheme", "int4", "--scheme-option", "group_size=32", "--epochs", "1", "--quiet", "--out", run]
    call("train", "mlp", *options)
    call("export", run, "-o", tmp_path / "m.onnx")
    assert "int4/32" in call("inspect", tmp_path / "m.onnx")
    for wrong in ("group_size", "group_sise=32"):
        bad = ["train", "mlp", "--scheme", "int4", "--scheme-option", wrong, "--out", str(tmp_path / "bad")]
        result = CliRunner().invoke(main, bad)
        assert result.exit_code == 2, result.output
    assert not (tmp_path / "bad").exists()
