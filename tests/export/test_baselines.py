"""The float baseline is the network without quantizers; the int8 baseline is onnxruntime's own, and is close to it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from dialect_graphs import model_of, quantized_cnn
from onnx import helper, numpy_helper
from torch import nn

from subbyte.errors import ModelError, UsageError
from subbyte.export import export, float_baseline, int8_baseline, run_onnx
from subbyte.export.functions import append_functions
from subbyte.models import quantize

X = np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("fmt", ["int8", "ternary", "pow2_4", "uint3"])
def test_the_float_baseline_has_no_quantizers_and_nearly_the_same_answers(fmt):
    model = quantized_cnn(fmt)
    baseline = float_baseline(model)
    onnx.checker.check_model(baseline, full_check=True)
    assert not baseline.functions
    assert operators(baseline) == {"Conv": 1, "Relu": 1, "ReduceMean": 1, "MatMul": 1, "Add": 1}
    ours, floats = run_onnx(model, X)["logits"], run_onnx(baseline, X)["logits"]
    # steps of 1/40, 1/20 and 1/50 in, scales of at most 0.01 and levels of at most 8 after
    np.testing.assert_allclose(floats, ours, atol=0.03 * np.abs(ours).max())
    assert np.abs(floats - ours).max() > 0


def test_a_float_model_is_its_own_baseline():
    baseline = float_baseline(quantized_cnn())
    again = float_baseline(baseline)
    assert operators(again) == operators(baseline)
    np.testing.assert_array_equal(run_onnx(again, X)["logits"], run_onnx(baseline, X)["logits"])


def test_the_padding_of_a_binary_convolution_goes_back_into_it():
    x = np.random.default_rng(2).normal(size=(1, 2, 4, 4)).astype(np.float32)
    shape = np.array([3, 2, 3, 3], np.int64)
    constants = {
        "threshold": np.zeros((1, 2, 1, 1), np.float32),
        "packed": np.random.default_rng(0).integers(0, 256, (3, 3)).astype(np.uint8)
        & np.array([255, 255, 3], np.uint8),
        "shape": shape,
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "one": np.array(1, np.float32),
        "scale": np.full((1, 3, 1, 1), 0.5, np.float32),
    }
    nodes = [
        helper.make_node("Binarize", ["input", "threshold"], ["signs"], domain="subbyte"),
        helper.make_node("Pad", ["signs", "pads", "one"], ["padded"], mode="constant"),
        helper.make_node("DecodeBinary", ["packed", "shape"], ["levels"], domain="subbyte"),
        helper.make_node("Conv", ["padded", "levels"], ["product"], kernel_shape=[3, 3], pads=[0, 0, 0, 0]),
        helper.make_node("Round", ["product"], ["sum"]),
        helper.make_node("Mul", ["sum", "scale"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("input", [1, 2, 4, 4]), ("y", [1, 3, 4, 4]))]
    tensors = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    model = model_of(helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors))
    baseline = float_baseline(model)
    assert operators(baseline) == {"Conv": 1}
    assert run_onnx(baseline, x)["y"].shape == run_onnx(model, x)["y"].shape


def test_a_factor_that_meets_no_weight_is_applied():
    step = np.array(4, np.float32)
    nodes = [
        helper.make_node("Quantize", ["input", "step", "low", "high"], ["codes"], domain="subbyte"),
        helper.make_node("Transpose", ["codes"], ["moved"], perm=[1, 0]),
        helper.make_node("MatMul", ["codes", "moved"], ["y"], name="mm"),
    ]
    tensors = [numpy_helper.from_array(step, "step")]
    tensors += [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", -128), ("high", 127))]
    infos = [helper.make_tensor_value_info(n, 1, [3, 3]) for n in ("input", "y")]
    model = model_of(helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors))
    x = np.random.default_rng(0).integers(-8, 8, (3, 3)).astype(np.float32) / 4  # on the grid: nothing is lost
    np.testing.assert_allclose(run_onnx(float_baseline(model), x)["y"], run_onnx(model, x)["y"], rtol=1e-6)


def test_the_int8_baseline_is_int8_and_near():
    baseline = float_baseline(quantized_cnn())
    integer = int8_baseline(baseline, [X, X * 0.5])
    weight = next(t for t in integer.graph.initializer if "weight_quantized" in t.name and len(t.dims) == 4)
    assert weight.data_type == onnx.TensorProto.INT8
    floats, integers = run_onnx(baseline, X)["logits"], run_onnx(integer, X)["logits"]
    np.testing.assert_allclose(integers, floats, atol=0.05 * np.abs(floats).max())


def test_an_int8_cnn_needs_calibration():
    with pytest.raises(ModelError, match="calibration"):
        int8_baseline(float_baseline(quantized_cnn()), [])


def qdq_cnn(weight: np.ndarray, relu: bool = False) -> onnx.ModelProto:
    """Two convolutions that share a weight int8 [3, 3, 3, 3], per channel; the second is quantized from code 0 on."""
    scales = np.array([0.01, 0.02, 0.03], np.float32)
    constants = {"w": weight, "ws": scales, "wz": np.array([0, 1, -2], np.int8), "s": np.array(0.05, np.float32)}
    constants |= {"z": np.array(3, np.int8), "low": np.array(0, np.uint8), "b": np.array([100, -200, 300], np.int32)}
    constants |= {"bs": scales * np.float32(0.05), "bz": np.zeros(3, np.int32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"]),
        helper.make_node("Transpose", ["xq"], ["xt"], perm=[0, 1, 3, 2]),
        helper.make_node("DequantizeLinear", ["xt", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["again"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], axis=0),
        helper.make_node("Conv", ["x", "wf", "bf"], ["one"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["one", "again"], ["two"], pads=[1, 1, 1, 1]),
        *([helper.make_node("Relu", ["two"], ["relu"])] if relu else []),
        helper.make_node("QuantizeLinear", ["relu" if relu else "two", "s", "low"], ["yq"], name="last"),
        helper.make_node("DequantizeLinear", ["yq", "s", "low"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, 1, [2, 3, 6, 6]) for n in ("input", "y")]
    tensors = [numpy_helper.from_array(a, n) for n, a in constants.items()]
    model = model_of(helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors))
    return onnx.shape_inference.infer_shapes(model)


WEIGHT = np.random.default_rng(3).integers(-127, 128, (3, 3, 3, 3)).astype(np.int8)


def test_the_baseline_of_a_qdq_file_computes_in_float_with_dequantized_weights():
    baseline = float_baseline(qdq_cnn(WEIGHT))
    onnx.checker.check_model(baseline, full_check=True)
    assert operators(baseline) == {"Transpose": 1, "Conv": 2, "Clip": 1, "Identity": 1}
    scales = np.array([0.01, 0.02, 0.03], np.float32)
    real = (WEIGHT - np.array([0, 1, -2], np.float32).reshape(-1, 1, 1, 1)) * scales.reshape(-1, 1, 1, 1)
    bias = np.array([100, -200, 300], np.float32) * (scales * np.float32(0.05))
    constants = {"w": real, "b": bias, "low": np.float32(0), "high": np.float32(0.05 * 255)}
    nodes = [
        helper.make_node("Transpose", ["input"], ["x"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["x", "w", "b"], ["one"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["one", "w"], ["two"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["two", "low", "high"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, 1, [2, 3, 6, 6]) for n in ("input", "y")]
    tensors = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items()]
    wanted = run_onnx(model_of(helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)), X)["y"]
    assert (wanted == 0).any()
    assert (wanted > 0).any()
    np.testing.assert_allclose(run_onnx(baseline, X)["y"], wanted, rtol=1e-5, atol=1e-5)


def test_a_quantizer_after_a_relu_leaves_the_relu_alone():
    assert operators(float_baseline(qdq_cnn(WEIGHT, relu=True))) == {
        "Transpose": 1,
        "Conv": 2,
        "Relu": 1,
        "Identity": 1,
    }


def test_weights_that_layers_share_are_stored_once():
    baseline = float_baseline(qdq_cnn(WEIGHT))
    assert [t.data_type for t in baseline.graph.initializer if list(t.dims) == [3, 3, 3, 3]] == [onnx.TensorProto.FLOAT]
    assert all(t.data_type == onnx.TensorProto.FLOAT for t in baseline.graph.initializer)


def test_what_holds_quantizers_of_another_kind_is_refused():
    packed, scale = np.zeros((4, 1, 16), np.uint8), np.ones(4, np.float32)
    four_bits = helper.make_node(
        "MatMulNBits", ["input", "w", "s"], ["y"], "mm", domain="com.microsoft", K=32, N=4, bits=4, block_size=32
    )
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("input", [2, 32]), ("y", [2, 4]))]
    tensors = [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scale, "s")]
    model = model_of(helper.make_graph([four_bits], "g", infos[:1], infos[1:], tensors))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UsageError, match=r"'mm' \(MatMulNBits\).*--float-model"):
        float_baseline(model)


def test_codes_that_an_operator_computes_with_are_refused():
    model = qdq_cnn(WEIGHT)
    model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["yq"], ["y"], name="cast", to=1))
    with pytest.raises(UsageError, match=r"'cast' \(Cast\).*--float-model"):
        float_baseline(model)


def test_onnxruntimes_own_qdq_file_goes_back_to_float():
    """Its quantizer removes the Relu, which the range of the codes replaces."""
    floats = float_baseline(quantized_cnn())
    baseline = float_baseline(int8_baseline(floats, [X, X * 0.5]))
    onnx.checker.check_model(baseline, full_check=True)
    assert not [op for op in operators(baseline) if "Quant" in op]
    wanted = run_onnx(floats, X)["logits"]
    np.testing.assert_allclose(run_onnx(baseline, X)["logits"], wanted, atol=0.05 * np.abs(wanted).max())


def test_a_layer_that_is_called_twice_has_one_weight_in_the_baseline(tmp_path):
    """Its calls have activation steps of their own, which the folding cancels."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared = nn.Linear(16, 24), nn.Linear(24, 24)

        def forward(self, x):
            return self.shared(self.shared(self.first(x).relu()).relu())

    torch.manual_seed(0)
    model = quantize(Twice(), "ternary", example=torch.randn(4, 16))
    for _ in range(3):
        model(torch.randn(16, 16))
    export(model.eval(), tmp_path / "m.onnx", example=torch.randn(4, 16))
    baseline = float_baseline(tmp_path / "m.onnx")
    assert operators(baseline)["MatMul"] == 3
    assert sorted(list(t.dims) for t in baseline.graph.initializer if len(t.dims) == 2) == [[16, 24], [24, 24]]


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("c", [None, (), (4,), (1, 4), (4, 1), (4, 4)], ids=str)
@pytest.mark.parametrize(
    "after", [("Add", (4,)), ("Mul", (4,)), ("Mul", (4, 1)), ("Add", (4, 4)), ("Add", (1, 4))], ids=str
)
def test_a_gemm_with_factors_is_folded_exactly(beta, c, after):
    """As many rows as columns: which axis a constant runs along does not show in its size."""
    random = np.random.default_rng(2)
    constants = {"w": random.normal(size=(4, 3)), "k": random.normal(size=after[1])}
    if c is not None:
        constants["c"] = random.normal(size=c)
    nodes = [
        helper.make_node("Gemm", ["x", "w", *(["c"] if c is not None else [])], ["g"], transB=1, alpha=0.5, beta=beta),
        helper.make_node(after[0], ["g", "k"], ["y"]),
    ]
    assert_same_floats(nodes, constants, (4, 3), (4, 4))


@pytest.mark.parametrize("operator", ["Mul", "Add"])
@pytest.mark.parametrize("constant", [(4,), (4, 1), (4, 1, 1), (1, 4, 1, 1), (1,), (4, 4)], ids=str)
def test_constants_after_a_convolution_are_folded_by_channel_alone(operator, constant):
    random = np.random.default_rng(3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["g"]), helper.make_node(operator, ["g", "k"], ["y"])]
    constants = {"w": random.normal(size=(4, 2, 1, 1)), "k": random.normal(size=constant)}
    assert_same_floats(nodes, constants, (1, 2, 4, 4), (1, 4, 4, 4))


@pytest.mark.parametrize("operator", ["Mul", "Add"])
@pytest.mark.parametrize(
    ("w", "constant", "result"),
    [
        ((4, 4), (4, 1), (4, 4)),
        ((4, 1), (4,), (4, 4)),
        ((4, 4), (1, 1, 4), (1, 4, 4)),
        ((4,), (4,), (4,)),
        ((4, 4), (4,), (4, 4)),
    ],
    ids=str,
)
def test_constants_after_a_matrix_product_are_folded_by_column_alone(operator, w, constant, result):
    random = np.random.default_rng(4)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["g"]), helper.make_node(operator, ["g", "k"], ["y"])]
    assert_same_floats(nodes, {"w": random.normal(size=w), "k": random.normal(size=constant)}, (4, 4), result)


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_a_round_of_floats_stays(op):
    random = np.random.default_rng(6)
    nodes = [helper.make_node(op, ["x", "w"], ["g"]), helper.make_node("Round", ["g"], ["y"])]
    shape = {"MatMul": (4, 4), "Conv": (1, 4, 4, 4)}[op]
    assert_same_floats(nodes, {"w": random.normal(size=(4, 4, 1, 1)[: len(shape)])}, shape, shape)


def test_a_round_of_integers_computed_at_run_time_is_left_out():
    """Two quantized tensors, as in attention: the sum of their floats is not rounded."""
    nodes = [helper.make_node("Quantize", [x, "s", "l", "h"], [f"{x}q"], domain="subbyte") for x in ("x", "z")]
    nodes += [helper.make_node("MatMul", ["xq", "zq"], ["g"]), helper.make_node("Round", ["g"], ["r"])]
    nodes += [helper.make_node("Mul", ["r", "k"], ["y"])]
    constants = {"s": 0.5, "l": -128, "h": 127, "k": 4}
    tensors = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    infos = [helper.make_tensor_value_info(name, 1, (4, 4)) for name in "xzy"]
    model = model_of(helper.make_graph(nodes, "g", infos[:2], infos[2:], tensors))
    x, z = np.random.default_rng(7).normal(size=(2, 4, 4)).astype(np.float32)
    baseline = float_baseline(model)
    assert operators(baseline)["Round"] == 0
    np.testing.assert_allclose(run_onnx(baseline, {"x": x, "z": z})["y"], x @ z, rtol=1e-5, atol=1e-5)


def assert_same_floats(nodes, constants, x, y):
    """A float model and its baseline compute the same."""
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    infos = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = np.random.default_rng(5).normal(size=x).astype(np.float32)
    wanted, got = run_onnx(model, feed)["y"], run_onnx(float_baseline(model), feed)["y"]
    assert got.shape == y
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "pad",
    [
        "Pad(codes, spatial, three)",  # constants other than zero, in units of the step
        "Pad(codes, spatial, zero)",
        'Pad <mode = "reflect"> (codes, spatial, zero)',
        "Pad(codes, channels, three)",
        "Pad(codes, channels, zero)",
    ],
)
def test_padding_before_a_convolution_keeps_its_values(pad: str) -> None:
    channels = 1 + ("channels" in pad)
    text = f"""<ir_version: 10, opset_import: ["" : 21, "subbyte" : 1]> g (float[1, 1, 4] x) => (float[1, 1, n] y)
        <float s = {{2}}, float low = {{-8}}, float high = {{7}}, float three = {{3}}, float zero = {{0}},
        float[1, {channels}, 2] w = {{{", ".join(map(str, range(1, 2 * channels + 1)))}}},
        int64[6] spatial = {{0, 0, 1, 0, 0, 2}}, int64[6] channels = {{0, 1, 0, 0, 0, 0}}>
        {{ codes = subbyte.Quantize(x, s, low, high) p = {pad} acc = Conv(p, w) y = Round(acc) }}"""
    model = append_functions(onnx.parser.parse_model(text))
    x = np.array([[[0.5, -1.0, 3.0, 1.5]]], np.float32)  # on the grid: nothing is lost
    np.testing.assert_array_equal(run_onnx(float_baseline(model), x)["y"], run_onnx(model, x)["y"])
