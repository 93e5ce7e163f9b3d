"""A float ONNX file quantized without training: as torch quantizes the network, and what stays float."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.data import TensorDataset

import subbyte
from subbyte.cli import main
from subbyte.errors import DataError, QuantizationError, UsageError
from subbyte.export import inspect, quantize_onnx, run_onnx
from subbyte.models import load_data
from subbyte.models.data import Data
from subbyte.models.post import Calibration, post_train
from subbyte.models.post.calibration_data import calibration_batches
from subbyte.models.quant import Rule, as_recipe, combine, get_scheme

RNG = np.random.default_rng(0)


def network() -> nn.Module:
    """A convolution, a depthwise one with stride, and a Linear."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    ).eval()


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("float") / "float.onnx"
    subbyte.export(network(), file, example=torch.zeros(1, 1, 8, 8))
    return file


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("int8", {}), ("int4", {"group_size": 16}), ("ternary", {"activations": "token"}), ("pow2", {"keep": None})],
)
def test_a_file_is_quantized_as_its_module_is(
    float_file: Path, tmp_path: Path, scheme: str, options: dict[str, Any]
) -> None:
    out, data = tmp_path / "q.onnx", load_data("digits")
    report = quantize_onnx(
        float_file, out, data="digits", scheme=scheme, scheme_options=options, samples=128, progress=False
    )
    assert len(report.layers) == 3
    assert not report.float_nodes
    recipe = as_recipe(get_scheme(scheme, **options))
    expected = post_train(network(), calibration_batches(data, 128, 64, 0), recipe, Calibration())
    inputs, _ = data.test_arrays(64)
    with torch.no_grad():
        logits = expected(torch.from_numpy(inputs)).numpy()
    (found,) = run_onnx(out, inputs).values()
    # onnxruntime sums in another order than torch: a step may differ in its last bits, and a code on a tie with it.
    assert np.linalg.norm(found - logits) < 2e-3 * np.linalg.norm(logits)
    stored = {"pow2": "pow2_4", "int4": "int4/16"}.get(scheme, scheme)
    assert inspect(out).layers[1].weight_format == stored
    said = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert said["subbyte.scheme"] == scheme
    assert json.loads(said["subbyte.post_training"])["samples"] == 128


@pytest.mark.parametrize(("weights", "activations"), [("int8", None), (None, "int8")])
def test_one_half_of_a_product_may_stay_in_float(
    float_file: Path, tmp_path: Path, weights: str | None, activations: str | None
) -> None:
    out = tmp_path / "q.onnx"
    rules = [Rule(combine(weights, activations))]
    report = quantize_onnx(float_file, out, data="digits", recipe=rules, samples=64, progress=False)
    assert report.relative_error < 0.02
    for row in inspect(out).layers:
        assert row.weight_format == (weights or "float32")
        assert (row.activation_format == "float32") == (activations is None)


def test_the_report_compares_with_the_float_file(float_file: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "q.onnx", load_data("digits")
    report = quantize_onnx(float_file, out, data="digits", calibrator="percentile", progress=False)
    inputs, labels = data.test_arrays(256)
    outputs = [next(iter(run_onnx(file, inputs).values())) for file in (out, float_file)]
    assert (report.score, report.float_score) == tuple(float((o.argmax(1) == labels).mean()) for o in outputs)
    error = np.linalg.norm((outputs[0] - outputs[1]).astype(np.float64)) / np.linalg.norm(outputs[1].astype(np.float64))
    assert report.relative_error == pytest.approx(error)
    assert report.relative_error < 0.03
    assert report.nbytes == out.stat().st_size


# ---- a file of another program ----


def constant(name: str, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
    return numpy_helper.from_array((scale * RNG.standard_normal(shape)).astype(np.float32), name)


def foreign(opset: int = 13) -> onnx.ModelProto:
    """x [N, 6, 16]: Conv1d by auto_pad, MatMul, a product at run time, ConvTranspose, Gemm with factors."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["c"], "conv.1", auto_pad="SAME_UPPER", kernel_shape=[3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "matmul.w"], ["m"], "matmul"),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["m", "t"], ["s"], "scores"),
        helper.make_node("ConvTranspose", ["s", "up.w"], ["u"], "up"),
        helper.make_node("ReduceMean", ["u"], ["p"], axes=[2], keepdims=0),
        helper.make_node("Gemm", ["p", "gemm.w", "gemm.b"], ["y"], "gemm", alpha=0.5, beta=2.0),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [
            *(constant("conv.w", 8, 6, 3), constant("conv.b", 8), constant("matmul.w", 16, 12)),
            *(constant("up.w", 8, 5, 3), constant("gemm.w", 5, 4), constant("gemm.b", 1, 4)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def series(count: int = 96) -> Data:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(count, 6, 16, generator=generator), torch.arange(count) % 4
    part = TensorDataset(inputs, targets)
    return Data("own", part, part, (6, 16), 4)


def test_what_can_be_quantized_is_and_the_rest_says_why(tmp_path: Path) -> None:
    file, out = tmp_path / "f.onnx", tmp_path / "q.onnx"
    onnx.save(foreign(), file)
    report = quantize_onnx(file, out, data=series(), progress=False)
    assert report.layers == ("conv_1", "matmul", "gemm")
    assert report.float_nodes == {
        "scores": "its weight is not a constant of the file",
        "up": "ConvTranspose has no quantized form",
    }
    assert report.relative_error < 0.03
    written = onnx.load(out)
    assert not {"conv.w", "matmul.w", "gemm.w"} & {tensor.name for tensor in written.graph.initializer}
    inputs, _ = series().test_arrays(10)
    (expected,), (found,) = run_onnx(file, inputs).values(), run_onnx(out, inputs).values()
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    assert [function.name for function in written.functions] == ["DecodeInt8", "Quantize"]


def test_rules_name_nodes(tmp_path: Path) -> None:
    file, rules = tmp_path / "f.onnx", tmp_path / "r.json"
    onnx.save(foreign(), file)
    rules.write_text('[{"name": "conv*", "scheme": "float"}, {"type": "Linear", "scheme": "int4"}]')
    report = quantize_onnx(file, tmp_path / "q.onnx", data=series(), recipe=str(rules), progress=False)
    assert report.layers == ("matmul", "gemm")
    assert report.float_nodes["conv_1"] == "the recipe leaves it in float"


# ---- bad input ----


def test_bad_requests_are_refused_and_nothing_is_written(float_file: Path, tmp_path: Path) -> None:
    quantized, out, other = tmp_path / "done.onnx", tmp_path / "q.onnx", tmp_path / "other.onnx"
    quantize_onnx(float_file, quantized, data="digits", samples=64, progress=False)
    data = load_data("digits")
    images, labels = data.train.batch(slice(64))  # type: ignore[attr-defined]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, 16]) for name in ("x", "y"))
    relu = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(relu, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), other)
    zeros = replace(data, train=TensorDataset(0 * images, labels))
    cases: tuple[tuple[Path, dict[str, Any], type[Exception], str], ...] = (
        (quantized, {"data": "digits"}, UsageError, "quantized already"),
        (float_file, {}, UsageError, "name a data set"),
        (float_file, {"data": series()}, DataError, r"takes inputs \[1, 1, 8, 8\], the data's are \[6, 16\]"),
        (float_file, {"data": zeros}, DataError, "all values of its 64 samples are 0"),
        (float_file, {"data": "digits", "steps": ["adaround"]}, UsageError, "quantize a checkpoint"),
        (float_file, {"data": "digits", "scheme": "binary"}, QuantizationError, "integer activations"),
        (other, {"data": series()}, QuantizationError, "no product of the file"),
    )
    for source, fields, kind, words in cases:
        with pytest.raises(kind, match=words):
            quantize_onnx(source, out, progress=False, **fields)
        assert not out.exists()


def test_the_command_line_tells_a_file_from_a_folder(float_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    done = CliRunner().invoke(
        main, ["quantize", str(float_file), "--data", "digits", "--samples", "64", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "3 products quantized" in done.output
    assert "relative error" in done.output
    assert out.is_file()
