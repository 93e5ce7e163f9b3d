"""The score that training prints is that of `check` and of `bench --baseline`, by the metric of the task."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from tiny_tasks import EXAMPLES

import subbyte
from subbyte.cli import main
from subbyte.export import export
from subbyte.judge.verdict import compare, prepare
from subbyte.models import Data, load_checkpoint, train
from subbyte.models.data import register


@pytest.mark.parametrize("name", ["regression", "segmentation", "language-modelling"])
def test_check_and_verdict_score_as_training_did(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "_DATA", dict(register._DATA))
    example = EXAMPLES[name]

    @register.register_data("made", summary="made here")
    def made(path: Path | None = None, more: int = 0) -> Data:
        return example.data(name)

    result = train(
        example.network(), None, "int8", 2, tmp_path / "run", data="made", data_options={"more": 1}, progress=False
    )
    checkpoint = load_checkpoint(result.folder, example.network())
    written = export(checkpoint, tmp_path / "m.onnx")
    assert written.checked_on == f"test {'images' if name == 'segmentation' else 'inputs'} of made"
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["subbyte.task"] == name
    assert json.loads(metadata["subbyte.data_options"]) == {"more": 1}
    subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte")

    report = subbyte.check(checkpoint, tmp_path / "m.onnx", tmp_path / "m.subbyte", data="made")
    data = example.data(name)
    assert report.metric == result.metric
    assert report.chance is not None
    assert [stage.score for stage in report.stages[1:]] == pytest.approx([result.score] * 3, rel=1e-5)
    assert (report.stages[1].changed_predictions is None) == (name == "regression")
    assert f"{result.metric.title} {result.metric.words(result.score)}" in str(report)

    for made_file in ("m.onnx", "m.subbyte"):
        shown = CliRunner().invoke(main, ["inspect", str(tmp_path / made_file)]).output
        assert f"task {name}, " in shown
        assert ", data made" in shown

    found = compare(prepare(tmp_path / "m.subbyte"), seconds=0.01)
    assert (found.data, found.metric, found.chance) == (data.name, result.metric, report.chance)
    assert found.contenders[0].score == pytest.approx(result.score, rel=1e-5)
    assert all(one.score is not None for one in found.contenders)
    assert all(result.metric.title in sentence for sentence in found.sentences[:2])
