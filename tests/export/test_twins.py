"""The float twin is the same network without quantizers; the int8 twin is onnxruntime's own and stays near it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from dialect_graphs import model_of, quantized_cnn
from onnx import helper, numpy_helper

from subbyte.errors import ModelError
from subbyte.export import float_twin, int8_twin, run_onnx

X = np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("fmt", ["int8", "ternary", "pow2_4", "uint3"])
def test_the_float_twin_has_no_quantizers_and_nearly_the_same_answers(fmt):
    model = quantized_cnn(fmt)
    twin = float_twin(model)
    onnx.checker.check_model(twin, full_check=True)
    assert not twin.functions
    assert operators(twin) == {"Conv": 1, "Relu": 1, "ReduceMean": 1, "MatMul": 1, "Add": 1}
    ours, floats = run_onnx(model, X)["logits"], run_onnx(twin, X)["logits"]
    # steps of 1/40, 1/20 and 1/50 in, scales of at most 0.01 and levels of at most 8 after
    np.testing.assert_allclose(floats, ours, atol=0.03 * np.abs(ours).max())
    assert np.abs(floats - ours).max() > 0


def test_a_float_model_is_its_own_twin():
    twin = float_twin(quantized_cnn())
    again = float_twin(twin)
    assert operators(again) == operators(twin)
    np.testing.assert_array_equal(run_onnx(again, X)["logits"], run_onnx(twin, X)["logits"])


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
    twin = float_twin(model)
    assert operators(twin) == {"Conv": 1}
    assert run_onnx(twin, x)["y"].shape == run_onnx(model, x)["y"].shape


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
    np.testing.assert_allclose(run_onnx(float_twin(model), x)["y"], run_onnx(model, x)["y"], rtol=1e-6)


def test_the_int8_twin_is_int8_and_near():
    twin = float_twin(quantized_cnn())
    integer = int8_twin(twin, [X, X * 0.5])
    weight = next(t for t in integer.graph.initializer if "weight_quantized" in t.name and len(t.dims) == 4)
    assert weight.data_type == onnx.TensorProto.INT8
    floats, integers = run_onnx(twin, X)["logits"], run_onnx(integer, X)["logits"]
    np.testing.assert_allclose(integers, floats, atol=0.05 * np.abs(floats).max())


def test_an_int8_cnn_needs_calibration():
    with pytest.raises(ModelError, match="calibration"):
        int8_twin(float_twin(quantized_cnn()), [])
