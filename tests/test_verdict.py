"""What a bundle is compared with where its file is quantized already."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import subbyte
from subbyte.errors import UsageError
from subbyte.verdict import compare, prepare


def saved(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], features: int) -> Path:
    infos = [helper.make_tensor_value_info(name, 1, [1, features]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_a_qdq_file_is_its_own_int8_contender(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (128, 128)).astype(np.int8)
    constants = {"w": weight, "s": np.array(0.02, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"], name="mm"),
    ]
    file = saved(tmp_path / "m.onnx", nodes, constants, 128)
    subbyte.compile(file, tmp_path / "m.subbyte")
    with caplog.at_level(logging.WARNING):
        found = compare(tmp_path / "m.subbyte", seconds=0.02)
    assert not caplog.records
    sizes = {contender.name: contender.nbytes for contender in found.contenders}
    assert list(sizes) == ["subbyte", "onnxruntime float32", "onnxruntime QDQ (the file itself)"]
    assert sizes["onnxruntime QDQ (the file itself)"] == sizes["subbyte"] == file.stat().st_size
    assert 4 * 128 * 128 < sizes["onnxruntime float32"] < 4 * 128 * 128 + 1000


def test_a_file_without_a_float_version_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    constants = {"w": np.full((32, 1, 16), 0x9A, np.uint8), "s": np.ones(32, np.float32)}
    product = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "mm", domain="com.microsoft", K=32, N=32, bits=4, block_size=32
    )
    file = saved(tmp_path / "m.onnx", [product], constants, 32)
    subbyte.compile(file, tmp_path / "m.subbyte")
    with pytest.raises(UsageError, match="--float-model"):
        prepare(tmp_path / "m.subbyte")
