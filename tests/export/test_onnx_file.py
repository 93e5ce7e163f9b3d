"""The writer leaves a whole file or none; tests/test_open_onnx.py has the loader."""

from __future__ import annotations

import os

import pytest
from dialect_graphs import quantized_cnn

from subbyte.errors import WriteError
from subbyte.export.onnx_file import load_onnx, save_onnx


def test_what_is_saved_is_loaded(tmp_path):
    model = quantized_cnn()
    written = save_onnx(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == written
    assert load_onnx(tmp_path / "m.onnx") == model
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_missing_folder_is_an_error_and_nothing_is_written(tmp_path):
    with pytest.raises(WriteError, match="its folder is not there"):
        save_onnx(quantized_cnn(), tmp_path / "nowhere" / "m.onnx")
    assert not list(tmp_path.iterdir())
