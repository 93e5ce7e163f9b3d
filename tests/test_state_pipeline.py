"""A recurrent model from training to the bundle: `check`, the baselines and the verdict of its step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from recurrent import keyword_spotter

import subbyte
from subbyte.cli import main
from subbyte.dialect.state import states
from subbyte.errors import UsageError
from subbyte.export import float_baseline, run_onnx
from subbyte.judge.check import check
from subbyte.judge.verdict import compare, prepare
from subbyte.models import train
from subbyte.models.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, float, Path]:
    """A ternary model that was trained on digits, the accuracy after the last row, and the files of its step."""
    folder = tmp_path_factory.mktemp("gru")
    options = {"hidden": 16}
    run = train(
        "gru", "digits", "ternary", 6, folder / "run", model_options=options, learning_rate=1e-2, progress=False
    )
    done = CliRunner().invoke(main, ["export", str(folder / "run"), "--step", "-o", str(folder / "m.onnx")])
    assert done.exit_code == 0, done.output
    assert "(test images of digits)" in done.output
    subbyte.compile(folder / "m.onnx", folder / "m.subbyte", target="host", strict=True)
    return load_checkpoint(folder / "run"), run.accuracy, folder


def test_the_bundle_classifies_digits_row_by_row(trained: tuple[Checkpoint, float, Path]) -> None:
    """A reset before each image, the logits after the last row: the accuracy that training printed, exactly."""
    _, accuracy, folder = trained
    images, labels = subbyte.models.load_data("digits").test_arrays()
    right = 0
    with subbyte.load(folder / "m.subbyte", threads=1) as session:
        for image, label in zip(images, labels, strict=True):
            session.reset()
            for row in image[0]:
                logits = session.run(np.ascontiguousarray(row[None]))
            right += int(np.argmax(logits) == label)
    assert right / len(labels) == accuracy
    assert accuracy > 0.8
    print(f"accuracy {accuracy:.2%}")


def test_every_stage_goes_the_same_steps(trained: tuple[Checkpoint, float, Path]) -> None:
    """Of the rows of the test images, one image after the other."""
    whole, _, folder = trained
    report = check(whole, folder / "m.onnx", folder / "m.subbyte", data="digits", limit=12)
    assert not report.diverged, report
    assert report.samples == 12 * 8
    assert "it is not scored on single steps" in report.findings[0]
    assert [stage.score for stage in report.stages] == [None] * 4
    assert [stage.differing_codes for stage in report.stages[1:]] == [0, 0, 0]
    assert [output.name for output in report.stages[3].outputs] == ["logits", "cell.h_next"]
    assert [output.max_error for stage in report.stages[1:] for output in stage.outputs] == [0] * 6


def test_the_file_of_a_step_says_what_it_was_made_from(trained: tuple[Checkpoint, float, Path]) -> None:
    whole, _, folder = trained
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "m.onnx").metadata_props}
    assert metadata["subbyte.state"] == "cell.h=cell.h_next"
    assert (metadata["subbyte.model"], metadata["subbyte.scheme"]) == ("gru", "ternary")
    assert metadata["subbyte.source"] == whole.sha256


def test_a_stream_is_checked_too(tmp_path: Path, trained: tuple[Checkpoint, float, Path]) -> None:
    step = replace(trained[0], model=keyword_spotter("int8"))
    subbyte.export(step.model, tmp_path / "m.onnx", example=torch.zeros(1, 10, 1))
    subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", target="host")
    report = check(step, tmp_path / "m.onnx", tmp_path / "m.subbyte", limit=70)
    assert not report.diverged, report
    assert [output.max_error for output in report.stages[3].outputs] == [0, 0, 0]


def test_the_float_baseline_keeps_the_state(trained: tuple[Checkpoint, float, Path]) -> None:
    """In float32: near the quantized model, whose gates and state have 8 bits."""
    _, _, folder = trained
    made = float_baseline(folder / "m.onnx")
    assert [str(state) for state in states(made)] == ["cell.h=cell.h_next"]
    images, _ = subbyte.models.load_data("digits").test_arrays(40)
    agree = 0
    for image in images:
        ours, floats = (run_onnx(model, image[0]) for model in (folder / "m.onnx", made))
        assert floats["cell.h_next"].dtype == np.float32
        assert np.abs(floats["cell.h_next"] - (ours["cell.h_next"].astype(np.float32) - 128)).mean() < 8
        agree += int(ours["logits"][-1].argmax() == floats["logits"][-1].argmax())
    assert agree >= 36


def test_the_verdict_runs_all_versions_with_their_states(trained: tuple[Checkpoint, float, Path]) -> None:
    _, _, folder = trained
    verdict = compare(prepare(folder / "m.subbyte"), seconds=0.05)
    names = [contender.name for contender in verdict.contenders]
    assert names == ["subbyte", "onnxruntime float32", "onnxruntime int8"]
    assert verdict.rounds >= 2
    assert verdict.data is None
    with pytest.raises(UsageError, match="its accuracy is that of sequences"):
        prepare(folder / "m.subbyte", data="digits")
