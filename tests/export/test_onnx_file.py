"""The loader refuses what it cannot trust, each time with what to do; the writer leaves a whole file or none."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from dialect_graphs import quantized_cnn
from onnx.external_data_helper import convert_model_to_external_data

from subbyte.errors import ModelError, WriteError
from subbyte.export.onnx_file import MAXIMUM_BYTES, load_onnx, save_onnx


def with_external_data(folder, location="model.data"):
    model = quantized_cnn()
    convert_model_to_external_data(model, location="model.data", size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    if location != "model.data":
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


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


def test_external_data_beside_the_model_is_read(tmp_path):
    loaded = load_onnx(with_external_data(tmp_path))
    assert len(loaded.graph.initializer[0].raw_data)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "C:\\secret", ""])
def test_external_data_outside_of_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(10000))
    with pytest.raises(ModelError, match="outside of the model's folder"):
        load_onnx(with_external_data(folder, location))


def test_external_data_through_a_link_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    path = with_external_data(folder)
    (folder / "model.data").rename(tmp_path / "elsewhere")
    (folder / "model.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="outside of the model's folder"):
        load_onnx(path)


def test_external_data_that_is_missing_or_too_short_is_an_error(tmp_path):
    path = with_external_data(tmp_path)
    (tmp_path / "model.data").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read"):
        load_onnx(path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match="not beside the model"):
        load_onnx(path)


def test_missing_empty_truncated_and_foreign_files_are_errors(tmp_path):
    with pytest.raises(ModelError, match="there is no ONNX file"):
        load_onnx(tmp_path / "m.onnx")
    payload = quantized_cnn().SerializeToString()
    for content in (b"", payload[: len(payload) // 2], payload[:3], b"hello, world", np.arange(999).tobytes()):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ModelError):
            load_onnx(tmp_path / "m.onnx")


def test_a_file_over_the_limit_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(MAXIMUM_BYTES + 1)  # a hole: it takes no space
    with pytest.raises(ModelError, match=str(MAXIMUM_BYTES)):
        load_onnx(tmp_path / "m.onnx")


def test_a_graph_with_a_cycle_is_not_valid(tmp_path):
    model = quantized_cnn()
    model.graph.node[0].input[0] = "logits"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"has a cycle through node '{model.graph.node[0].name}'"):
        load_onnx(tmp_path / "m.onnx")


def test_the_node_that_is_named_is_on_the_cycle(tmp_path):
    """Not the first in the file that waits for it: that one only reads what the cycle makes."""
    nodes = [
        helper.make_node("Relu", ["c"], ["y"], "behind"),
        helper.make_node("Relu", ["x"], ["a"], "before"),
        helper.make_node("Add", ["a", "c"], ["b"], "first of the cycle"),
        helper.make_node("Relu", ["b"], ["c"], "second of the cycle"),
    ]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"has a cycle through node '(first|second) of the cycle'"):
        load_onnx(tmp_path / "m.onnx")


def test_a_graph_that_is_only_not_sorted_has_no_cycle(tmp_path):
    nodes = [helper.make_node("Relu", ["a"], ["y"], "last"), helper.make_node("Relu", ["x"], ["a"], "first")]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="topologically sorted"):
        load_onnx(tmp_path / "m.onnx")
