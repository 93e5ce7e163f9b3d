"""A detection network with several heads, from its checkpoint to every command: all outputs by name, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import subbyte
from subbyte.cli import main
from subbyte.errors import UsageError
from subbyte.models import Config, quantize, save_checkpoint
from subbyte.models.zoo import registry
from subbyte.runtime.golden import golden_outputs

NAMES = ["logits", "boxes", "file", "best", "highest"]


class Detector(nn.Module):
    """Class logits, two maps of other shapes, indices and a scalar; with `boxes_first` the logits come second."""

    def __init__(self, classes: int, boxes_first: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.boxes, self.head = nn.Conv2d(8, 6, 1), nn.Linear(8, classes)
        self.boxes_first = boxes_first

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.stem(x).relu()
        logits, boxes = self.head(features.amax((2, 3))), self.boxes(features)
        others = {"file": features, "best": boxes.argmax(1), "highest": boxes.amax((0, 1, 2, 3))}
        ours = {"logits": logits, "boxes": boxes.flatten(2).transpose(1, 2)}
        return (dict(reversed(ours.items())) if self.boxes_first else ours) | others


@dataclass(frozen=True)
class Files:
    model: nn.Module
    checkpoint: Path
    onnx: Path
    bundle: Path


def made(folder: Path, boxes_first: bool) -> Files:
    torch.manual_seed(0)
    model = quantize(Detector(10, boxes_first), "ternary", example=torch.randn(1, 1, 8, 8))
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    options = {"boxes_first": boxes_first}
    config = Config("detector", "ternary", (1, 8, 8), 10, model_options=options, data="digits")
    save_checkpoint(folder / "run", model.eval(), config)
    files = Files(model, folder / "run", folder / "m.onnx", folder / "m.subbyte")
    subbyte.export(files.checkpoint, files.onnx)
    subbyte.compile(files.onnx, files.bundle, strict=True)
    return files


@pytest.fixture(scope="module", autouse=True)
def _detector() -> Iterator[None]:
    def build(classes: int, channels: int, size: tuple[int, int], boxes_first: bool = False) -> nn.Module:
        return Detector(classes, boxes_first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._MODELS, "detector", registry.ModelEntry("detector", "for this test", build))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("detector"), boxes_first=False)


@pytest.fixture(scope="module")
def boxes_first(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("boxes_first"), boxes_first=True)


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def image(tmp_path: Path) -> np.ndarray:
    x = np.random.default_rng(3).standard_normal((1, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x


def test_the_session_gives_torchs_bits_of_every_output(files: Files, image: np.ndarray) -> None:
    with torch.no_grad():
        wanted = files.model(torch.from_numpy(image))
    with subbyte.load(files.bundle, threads=1) as session:
        got = session.run(image)
    assert isinstance(got, dict)
    assert list(got) == list(wanted) == NAMES
    for name, tensor in wanted.items():
        assert got[name].shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(got[name], tensor.numpy(), err_msg=name)


def test_run_saves_all_outputs_in_one_archive(files: Files, image: np.ndarray, tmp_path: Path) -> None:
    """One is called 'file', which numpy.savez does not take."""
    status, text = call("run", files.bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz")
    assert status == 0, text
    with subbyte.load(files.bundle, threads=1) as session:
        wanted = session.run(image)
    assert isinstance(wanted, dict)
    with np.load(tmp_path / "y.npz") as saved:
        assert list(saved) == NAMES
        for name in NAMES:
            assert saved[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(saved[name], wanted[name])


def test_run_prints_all_outputs(files: Files, image: np.ndarray, tmp_path: Path) -> None:
    status, text = call("run", files.bundle, "--input", tmp_path / "x.npy")
    assert status == 0, text
    for line in ("logits float32 [1, 10]", "boxes float32 [1, 16, 6]", "best int64 [1, 4, 4]", "highest float32 []"):
        assert line in text.splitlines()


@pytest.mark.parametrize("name", ["y.npy", "y"])
def test_run_refuses_a_file_for_one_array(files: Files, image: np.ndarray, tmp_path: Path, name: str) -> None:
    status, text = call("run", files.bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / name)
    assert status == 2
    assert f"the model has 5 outputs ({', '.join(NAMES)})" in text
    assert f"--output {tmp_path / 'y.npz'}" in text
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("data", [None, "digits"])
def test_check_compares_every_output_of_every_stage(files: Files, data: str | None) -> None:
    report = subbyte.check(files.checkpoint, files.onnx, files.bundle, data=data, limit=70)
    assert not report.diverged, report.findings
    assert [stage.name for stage in report.stages][2:] == ["onnxruntime", "bundle"]
    for stage in report.stages[1:]:
        assert [(output.name, output.max_error) for output in stage.outputs] == [(name, 0.0) for name in NAMES]
        assert stage.changed_predictions == 0
        assert (stage.score is None) == (data is None)
    assert all(output.largest > 0 for output in report.stages[1].outputs)
    assert any("'logits', the first of 5 outputs" in line for line in report.findings)
    assert "bundle, output 'boxes': max error 0" in str(report)


def test_check_scores_the_first_output(files: Files) -> None:
    images, labels = subbyte.models.load_data("digits").test_arrays(70)
    with torch.no_grad():
        logits = files.model(torch.from_numpy(images))["logits"].numpy()
    report = subbyte.check(files.checkpoint, files.onnx, files.bundle, data="digits", limit=70)
    assert {stage.score for stage in report.stages[1:]} == {float((logits.argmax(-1) == labels).mean())}


def test_check_names_the_output_that_differs(files: Files, tmp_path: Path) -> None:
    model = onnx.load(files.onnx)
    for tensor in model.graph.initializer:
        if tensor.name == "boxes.output_bias":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) + np.float32(0.5)).tobytes()
    onnx.save(model, tmp_path / "m.onnx")
    status, text = call("check", files.checkpoint, tmp_path / "m.onnx")
    assert status == 1
    wrong = [line for line in text.splitlines() if "outputs differ from torch's" in line]
    assert [line.split(" in ")[1].split(",")[0] for line in wrong] == ["'boxes'", "'highest'"]
    row = next(line.split() for line in text.splitlines() if line.startswith("boxes "))
    assert row[:2] == ["boxes", "1x16x6"]
    assert [float(cell) for cell in row[4:]] == pytest.approx([0.0, 0.5])


def test_the_golden_run_reports_every_output(files: Files) -> None:
    status, text = call("check", files.bundle)
    assert status == 0, text
    assert [line.split(":")[0] for line in text.splitlines()] == [*NAMES, "golden outputs"]
    assert text.endswith("golden outputs: equal\n")
    with subbyte.load(files.bundle, threads=1) as session:
        assert [array.shape for array in golden_outputs(session.bundle)] == [o.shape for o in session.outputs]


def test_bench_gives_a_verdict_and_says_what_it_scored(files: Files, tmp_path: Path) -> None:
    saved = tmp_path / "b.json"
    status, text = call(
        "bench", files.bundle, "--baseline", "onnxruntime", "--iterations", 3, "--seconds", 0.05, "--json", saved
    )
    assert status == 0, text
    assert "accuracy: on the test set of digits, by 'logits', the first of 5 outputs" in text
    found = json.loads(saved.read_text())
    assert found["golden_exact"] is True
    assert found["verdict"]["scored_on"] == "'logits', the first of 5 outputs"
    assert all(contender["score"] is not None for contender in found["verdict"]["contenders"])


def test_labels_are_refused_where_the_first_output_holds_no_logits(boxes_first: Files, tmp_path: Path) -> None:
    message = "accuracy is scored on the first output of the model, and 'boxes' of shape [1, 16, 6] is not the [N, 10]"
    with pytest.raises(UsageError) as refused:
        subbyte.check(boxes_first.checkpoint, boxes_first.onnx, boxes_first.bundle, data="digits", limit=8)
    assert message in str(refused.value)
    assert "return that output first" in str(refused.value)
    status, text = call("bench", boxes_first.bundle, "--baseline", "onnxruntime", "--data", "digits")
    assert status == 2
    assert message in text
    assert "latency" not in text


def test_without_labels_the_order_does_not_matter(boxes_first: Files) -> None:
    assert not subbyte.check(boxes_first.checkpoint, boxes_first.onnx, boxes_first.bundle, limit=8).diverged
    status, text = call("bench", boxes_first.bundle, "--baseline", "onnxruntime", "--iterations", 3, "--seconds", 0.05)
    assert status == 0, text
    assert "accuracy: not compared" in text
