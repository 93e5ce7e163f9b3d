"""Every data set of the register: it loads, or says what to install; what is listed of it is what it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_files import OWN_FILES

from subbyte.cli import main
from subbyte.errors import DataError, MissingDependencyError, UsageError
from subbyte.models.data import Data, describe, get_data, list_data, load_data

FEW: dict[str, dict[str, Any]] = {
    "shapes": {"samples": 40},
    "signals": {"samples": 40},
}
VARIANTS = [
    *((name, {}) for name in list_data()),
    ("table", {"target": "size"}),
    ("table", {"target": "colour", "encoding": "codes"}),
    ("signals", {"task": "sequence-labelling", "length": 70}),
    *(("digits", {"task": task}) for task in ("multi-label", "regression", "few-shot", "contrastive")),
]


def load_twice(name: str, options: dict[str, Any], folder: Path) -> tuple[Data, Data] | None:
    """The data set, twice; None where what it needs is not installed."""
    entry = get_data(name)
    path, options = None, {**FEW.get(name, {}), **options}
    if name in OWN_FILES:
        path, more = OWN_FILES[name](folder)
        options = {**more, **options}
    try:
        return load_data(name, path, **options), load_data(name, path, **options)
    except (MissingDependencyError, DataError) as error:
        if not entry.needs or entry.needs not in str(error):
            raise
        return None


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_data_set_is_what_it_says(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_twice(name, options, tmp_path)
    if loaded is None:
        return
    data, again = loaded
    shape = get_data(name).shape
    assert not shape or len(data.shape) == len(shape)
    assert not shape or all(
        found == said or isinstance(said, str) for found, said in zip(data.shape, shape, strict=True)
    )
    assert data.task == options.get("task", get_data(name).task) or name == "table"
    for part in (data.train, data.test):
        inputs, _ = part[0]
        assert tuple(inputs.shape) == data.shape
        assert str(inputs.numpy().dtype) == data.dtype
        assert bool(torch.isfinite(inputs).all())
    (x, y), (x2, y2) = data.test_arrays(8), again.test_arrays(8)
    assert np.array_equal(x, x2)
    assert np.array_equal(y, y2)
    if y.dtype.kind == "i":
        assert y.min() >= 0
        assert y.max() < (2 if data.task == "multi-label" else data.outputs)
    assert data.class_names == () or len(data.class_names) == data.outputs
    assert json.loads(json.dumps(data.preprocessing)) == data.preprocessing
    assert [title for title, _ in describe(data)][:5] == ["task", "input", "outputs", "train", "test"]
    if hasattr(data.test, "batch"):
        inputs, targets = data.test.batch([0, len(data.test) - 1])  # type: ignore[arg-type]
        for row, (one, target) in enumerate((data.test[0], data.test[len(data.test) - 1])):  # type: ignore[arg-type]
            assert torch.equal(one, inputs[row])
            assert torch.equal(torch.as_tensor(target), targets[row])


def test_every_data_set_of_a_user_has_files_here() -> None:
    assert {name for name in list_data() if get_data(name).path == "required"} <= set(OWN_FILES)


@pytest.mark.parametrize("name", list_data())
def test_what_a_data_set_does_not_take_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"data set '{name}' has no option 'colour'; its options: "):
        load_data(name, colour=1)
    if get_data(name).path == "required":
        with pytest.raises(UsageError, match=f"data set '{name}' needs a path"):
            load_data(name)
        with pytest.raises((DataError, UsageError), match="nothing"):
            load_data(name, tmp_path / "nothing", **({"target": "x"} if name == "table" else {}))
    if get_data(name).path == "none":
        with pytest.raises(UsageError, match=f"data set '{name}' takes no path"):
            load_data(name, tmp_path)


def test_series_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("subbyte.models.data.installed_series"), "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'subbyte\[series\]'"):
        load_data("basic-motions")


# ---- the command ----


def test_the_list_names_task_input_and_what_is_missing() -> None:
    lines = CliRunner().invoke(main, ["data"]).output.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == sorted(list_data())
    start = next(i for i, line in enumerate(lines) if line.startswith("japanese-vowels"))
    assert [line.split(maxsplit=1) for line in lines[start + 1 : start + 4]] == [
        ["task", "classification"],
        ["input", "[12, 29]"],
        ["needs", "pip install 'subbyte[series]'"],
    ]


def test_one_data_set_is_described(tmp_path: Path) -> None:
    path, _ = OWN_FILES["ts"](tmp_path)
    result = CliRunner().invoke(main, ["data", "ts", "--data-path", str(path)])
    assert [line.split(maxsplit=1) for line in result.output.splitlines()] == [
        ["task", "classification"],
        ["input", "float32 [2, 3]"],
        ["outputs", "2: up, down"],
        ["train", "2 samples: samples of each class up: 1, down: 1"],
        ["test", "1 samples: samples of each class up: 0, down: 1"],
    ]
    assert "are of one data set: name it." in CliRunner().invoke(main, ["data", "--data-option", "a=1"]).stderr
