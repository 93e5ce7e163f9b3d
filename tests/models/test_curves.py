"""Curves and TensorBoard logs have the numbers of log.csv; where their packages are missing, an error says so."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset

from subbyte.cli import main
from subbyte.errors import CheckpointError, MissingDependencyError, UsageError
from subbyte.models import train
from subbyte.models.train.curves import draw_curves, shown
from subbyte.models.train.folder import read_log

INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("matplotlib", "tensorboard")}
OLD = "epoch,train_loss,train_accuracy,test_loss,test_accuracy,learning_rate,seconds\n1.0,2,0.1,1.5,0.4,0.1,3\n"


def run_of(folder: Path, scheme: str, **fields: Any) -> Path:
    images, labels = torch.randn(24, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    parts = (TensorDataset(images, labels), TensorDataset(images, labels))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return train(model, parts, scheme, 2, folder, batch_size=8, accelerator="cpu", progress=False, **fields).folder


def test_curves_are_the_columns_of_the_logs(tmp_path: Path) -> None:
    new = run_of(tmp_path / "new", "int8")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "log.csv").write_text(OLD)  # of version 0.1.0, of a float model
    logs = {name: read_log(tmp_path / name / "log.csv") for name in ("new", "old")}
    panels = shown(logs)
    assert panels["accuracy"][0] == ("new", "test_accuracy", [1, 2], [row["test_accuracy"] for row in logs["new"]])
    assert ("old", "train_accuracy", [1], [0.1]) in panels["accuracy"]
    assert [line[0] for line in panels["share of flipped weights"]] == ["new"]
    assert list(shown({"old": logs["old"]})) == ["accuracy", "loss", "learning rate"]
    for suffix in (".png", ".html"):
        out = tmp_path / f"curves{suffix}"
        if not INSTALLED["matplotlib"]:
            with pytest.raises(MissingDependencyError, match=r"'matplotlib' is not installed.*subbyte\[curves\]"):
                draw_curves([new, tmp_path / "old"], out)
            assert not out.exists()
            continue
        result = CliRunner().invoke(main, ["curves", str(new), str(tmp_path / "old"), "-o", str(out)])
        assert result.output == f"{out}: curves of 2 runs\n"
        content = out.read_bytes()
        if suffix == ".png":
            assert content.startswith(b"\x89PNG")
            width, height = struct.unpack(">II", content[16:24])
            assert width > height > 900  # three rows of panels
        else:
            assert content.count(b"<svg") == content.count(b"</svg>") == 1
            assert content.count(b'id="axes_') == 6


def test_what_has_no_curves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\n1,x\n")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match=r"no log of a run.*give the folder"):
            draw_curves([folder], tmp_path / "c.png")
    with pytest.raises(UsageError, match=r"a \.png or a \.html, got the suffix '\.pdf'"):
        draw_curves([tmp_path], tmp_path / "c.pdf")


def test_tensorboard_has_the_rows_of_the_log(tmp_path: Path) -> None:
    if not INSTALLED["tensorboard"]:
        with pytest.raises(MissingDependencyError, match=r"'tensorboard' is not installed.*subbyte\[tensorboard\]"):
            run_of(tmp_path / "run", "int8", tensorboard=True)
        assert not (tmp_path / "run").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_of(tmp_path / "run", "int8", tensorboard=True)
    rows = read_log(folder / "log.csv")
    events: dict[str, dict[int, float]] = {}
    for file in (folder / "tensorboard").iterdir():
        read = EventAccumulator(str(file))
        read.Reload()
        for name in read.Tags()["scalars"]:
            events.setdefault(name, {}).update({one.step: one.value for one in read.Scalars(name)})
    assert set(events) == set(rows[0]) - {"epoch"}
    for name, values in events.items():
        assert values == pytest.approx({index: row[name] for index, row in enumerate(rows, 1)}, rel=1e-6)
