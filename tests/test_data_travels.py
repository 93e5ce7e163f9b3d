"""What a model must know of its data is in the checkpoint and the ONNX file; a bundle has what the file has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import torch

import subbyte
from subbyte.export import run_onnx
from subbyte.models import train
from subbyte.models.checkpoint import load_checkpoint
from subbyte.models.data import Normalization, load_data


def test_columns_normalization_and_class_names_travel(tmp_path: Path) -> None:
    rows = [f"{n % 7 + 0.5},{'red' if n % 3 else 'blue'},{'up' if n % 7 > 3 else 'down'}" for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["size,colour,way", *rows]))
    run = train(
        "mlp", "table", "int8", 1, tmp_path / "run", data_path=str(tmp_path / "t.csv"), data_options={"target": "way"},
        model_options={"hidden": [8]}, progress=False,
    )  # fmt: skip
    data = load_data("table", tmp_path / "t.csv", target="way")
    config = load_checkpoint(run.folder).config
    assert (config.shape, config.outputs, config.class_names) == ((3,), 2, ("down", "up"))
    assert config.normalization == data.normalization
    assert config.preprocessing == data.preprocessing
    file = tmp_path / "t.onnx"
    subbyte.export(run.folder, file)
    known = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(known["subbyte.preprocessing"])["columns"][1]["values"] == ["blue", "red"]
    assert json.loads(known["subbyte.class_names"]) == ["down", "up"]
    again = Normalization(**json.loads(known["subbyte.normalization"]))
    row = again(torch.tensor([[2.5, 0.0, 1.0]]))
    logits = load_checkpoint(run.folder).model(row).detach().numpy()
    assert np.allclose(next(iter(run_onnx(file, row.numpy()).values())), logits, atol=1e-5)
