"""The writer leaves a whole file or none; tests/test_open_onnx.py has the loader."""

from __future__ import annotations

import os
import re

import onnx
import onnx.parser
import pytest
from dialect_graphs import quantized_cnn

from subbyte.errors import ModelError, WriteError
from subbyte.export import inspect
from subbyte.export.baselines import float_baseline
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


@pytest.mark.parametrize("read", [inspect, float_baseline, load_onnx], ids=lambda read: read.__name__)
@pytest.mark.parametrize("call", ["other.Frob(x)", "subbyte.Frob(x)"])
def test_an_operator_without_engine_and_body_is_an_error(read, call):
    """Nothing is said of what nobody can run: its products would be counted as none."""
    head = '<ir_version: 10, opset_import: ["": 21, "other": 1, "subbyte": 1]>'
    text = f"{head} g (float[2] x) => (float[2] y) {{ y = {call} }}"
    name = call.removesuffix("(x)")
    body = f'<domain: "{name.split(".")[0]}", opset_import: ["": 21]> Frob (x) => (y) {{ y = Abs(x) }}'
    with pytest.raises(ModelError, match=rf"{re.escape(name)}[ (].*\(node 'y'\)|node 'y' calls {re.escape(name)}"):
        read(onnx.parser.parse_model(text))
    read(onnx.parser.parse_model(text + body))
