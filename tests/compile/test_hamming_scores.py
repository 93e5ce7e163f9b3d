"""Binary queries and keys, from training to a bundle: one module over a product of two binary tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import subbyte
from subbyte.export import inspect, run_onnx
from subbyte.models.data import load_data
from subbyte.models.quant.hamming import HammingScores
from subbyte.models.zoo import registry
from subbyte.models.zoo.registry import Size

CHANNELS = 40  # no whole number of words


class RowsByRows(nn.Module):
    """Compares each row of an image with each other, and classifies by the scores."""

    def __init__(self, classes: int, rows: int, pixels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(pixels, CHANNELS), nn.Linear(pixels, CHANNELS)
        self.scores = HammingScores(CHANNELS)
        self.classify = nn.Linear(rows * rows, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.squeeze(1)
        logits: Tensor = self.classify(self.scores(self.query(rows), self.key(rows)).flatten(1))
        return logits


def rows_by_rows(*, classes: int, channels: int, size: Size) -> nn.Module:
    return RowsByRows(classes, size[0], size[1] * channels)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_MODELS", dict(registry._MODELS))
        registry.register_model("rows_by_rows", summary="scores of the rows of an image", size=(8, 8))(rows_by_rows)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hamming")
    run = subbyte.train("rows_by_rows", data="digits", scheme="ternary", epochs=3, out=folder / "run")
    report = subbyte.export(run.folder, folder / "model.onnx")
    assert report.verification is not None
    assert report.verification.exact
    return Path(run.folder), folder / "model.onnx"


def test_scores_are_counts_of_signs() -> None:
    torch.manual_seed(0)
    scores = HammingScores(CHANNELS)
    queries, keys = torch.randn(2, 3, 5, CHANNELS), torch.randn(2, 3, 7, CHANNELS)
    scores(queries, keys)  # the first batch chooses thresholds: 0, for it has both signs
    found = scores.eval()(queries, keys)
    differ = (queries >= 0)[..., :, None, :] != (keys >= 0)[..., None, :, :]
    torch.testing.assert_close(found, (CHANNELS - 2 * differ.sum(-1)).float(), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["host", "cortex-m4"])
def test_the_bundle_compares_signs(exported: tuple[Path, Path], target: str, tmp_path: Path) -> None:
    _, file = exported
    made = subbyte.compile(file, tmp_path / "a.subbyte", target=target, strict=True)
    (row,) = [row for row in made.rows if row.kernel == "run-time-popcount"]
    assert (row.activation, row.weights, row.macs) == ("binary", "binary", 8 * 8 * CHANNELS)


def test_torch_onnxruntime_and_the_bundle_agree_on_real_digits(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = exported
    subbyte.compile(file, tmp_path / "a.subbyte", strict=True)
    assert not subbyte.check(run, file, tmp_path / "a.subbyte", limit=16).diverged
    test = load_data("digits").test
    right = 0
    with subbyte.load(tmp_path / "a.subbyte") as session:
        for index in range(100):
            image, label = test[index]
            x = image.numpy()[None]
            logits = run_onnx(file, x)["logits"]
            np.testing.assert_array_equal(session.run(x), logits)
            right += int(logits.argmax()) == label
    assert right > 50  # ten classes: the scores say what the digit is


def test_inspection_counts_it(exported: tuple[Path, Path]) -> None:
    _, file = exported
    found = inspect(file)
    assert not found.warnings
    assert found.macs == 2 * 8 * 8 * CHANNELS + 8 * 8 * CHANNELS + 64 * 10
