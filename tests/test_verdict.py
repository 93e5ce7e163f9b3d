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
from subbyte.judge.verdict import compare, prepare


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
        found = compare(prepare(tmp_path / "m.subbyte"), seconds=0.02)
    assert not caplog.records
    sizes = {contender.name: contender.nbytes for contender in found.contenders}
    assert list(sizes) == ["subbyte", "onnxruntime float32", "onnxruntime QDQ (the file itself)"]
    assert sizes["onnxruntime QDQ (the file itself)"] == sizes["subbyte"] == file.stat().st_size
    assert 4 * 128 * 128 < sizes["onnxruntime float32"] < 4 * 128 * 128 + 1000


def product(path: Path, features: int, wide: int) -> Path:
    """A float product of `features` inputs and `wide` outputs."""
    file = saved(
        path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((features, wide), "f4")}, features
    )
    model = onnx.load(file)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = wide
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("features", "wide", "message"),
    [
        (16, 32, r"does not run on the bundle's input, float32 \[1, 32\]"),
        (32, 5, r"is \[1, 5\], the bundle's \[1, 32\]"),
    ],
)
def test_another_float_model_is_refused_before_anything_is_measured(
    features: int, wide: int, message: str, tmp_path: Path
) -> None:
    subbyte.compile(product(tmp_path / "m.onnx", 32, 32), tmp_path / "m.subbyte")
    other = product(tmp_path / "other.onnx", features, wide)
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path / "m.subbyte", onnx=tmp_path / "m.onnx", float_model=other)
    right = prepare(tmp_path / "m.subbyte", onnx=tmp_path / "m.onnx", float_model=product(tmp_path / "r.onnx", 32, 32))
    assert right.float_source == str(tmp_path / "r.onnx")


def test_a_bundle_that_is_replaced_before_it_is_timed_is_refused(tmp_path: Path) -> None:
    for name, wide in (("m", 32), ("other", 5)):
        subbyte.compile(product(tmp_path / f"{name}.onnx", 32, wide), tmp_path / f"{name}.subbyte")
    ready = prepare(tmp_path / "m.subbyte")
    (tmp_path / "other.subbyte").replace(tmp_path / "m.subbyte")
    with pytest.raises(UsageError, match="was replaced while"):
        compare(ready, seconds=0.01)


def test_a_model_of_indices_is_compared_on_indices(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["w", "x"], ["y"])
    file = saved(tmp_path / "m.onnx", [node], {"w": np.ones((9, 1), np.float32)}, 1)
    model = onnx.load(file)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1]))
    onnx.save(model, file)
    subbyte.compile(file, tmp_path / "m.subbyte")
    found = compare(prepare(tmp_path / "m.subbyte"), seconds=0.01)
    assert [one.score for one in found.contenders] == [None] * 3
    with pytest.raises(UsageError, match=r"data set 'digits' has inputs of float32 \[1, 8, 8\], .* int64 \[\]"):
        prepare(tmp_path / "m.subbyte", data="digits")


def test_a_model_of_several_inputs_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    file = saved(tmp_path / "m.onnx", [node], {"w": np.ones((9, 1), np.float32)}, 4)
    model = onnx.load(file)
    model.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, file)
    subbyte.compile(file, tmp_path / "m.subbyte")
    with pytest.raises(UsageError, match=r"inputs are 'x' float32, 'z' float32; .* one input"):
        prepare(tmp_path / "m.subbyte")


def test_a_file_without_a_float_version_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    constants = {"w": np.full((32, 1, 16), 0x9A, np.uint8), "s": np.ones(32, np.float32)}
    product = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "mm", domain="com.microsoft", K=32, N=32, bits=4, block_size=32
    )
    file = saved(tmp_path / "m.onnx", [product], constants, 32)
    subbyte.compile(file, tmp_path / "m.subbyte")
    with pytest.raises(UsageError, match="--float-model"):
        prepare(tmp_path / "m.subbyte")
