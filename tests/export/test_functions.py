"""Every function of the library equals the NumPy reference in onnxruntime (plain, optimised) and in onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from dialect_graphs import model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from subbyte.dialect.function import PackedWeights, all_functions, get
from subbyte.errors import ExportError, UnknownNameError
from subbyte.export.functions import append_functions
from subbyte.formats import LowBitTensor, PerChannel, PerGroup, all_formats, reference

FORMATS = list(all_formats())
SHAPES = [(3, 7), (1, 1), (5,), (2, 3, 3, 3), (4, 16), (2, 5, 1)]
LEVELS = [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]


def call(name, initializers, inputs, outputs):
    """A model that is one call: initializers, run-time inputs, and the shapes of its float32 outputs."""
    order = get(name).proto.input
    node = helper.make_node(name, list(order), list(outputs), domain="subbyte", name="call")
    graph = helper.make_graph(
        [node],
        "one_call",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in initializers.items()],
    )
    return model_of(graph)


def run_onnxruntime(model, inputs, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def run_everywhere(model, inputs):
    onnx.checker.check_model(model, full_check=True)
    for level in LEVELS:
        yield run_onnxruntime(model, inputs, level)
    yield ReferenceEvaluator(model).run(None, inputs)


def packed(fmt, shape, granularity=None, seed=0):
    random = np.random.default_rng(seed)
    levels = random.choice(fmt.levels.values, size=shape)
    granularity = granularity or PerChannel()
    matrix = (shape[0], int(np.prod(shape[1:])))
    scale = random.uniform(0.1, 2, granularity.scale_shape(matrix)).astype(np.float32)
    return levels, LowBitTensor.from_levels(fmt, levels, scale, granularity)


def test_every_format_has_a_decoder_and_a_dequantizer():
    found = [(f.name, f.role.format, f.role.by_group) for f in all_functions() if isinstance(f.role, PackedWeights)]
    assert found == [(name, f, g) for f in all_formats() for name, g in ((f.decoder, False), (f.dequantizer, True))]
    for name in ("DecodeInt2", "DecodeUint8", "DecodeBinary", "DecodeTernary", "DecodePow2_4", "DequantizePow2_4n"):
        assert get(name).name == name


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_decoder_gives_the_levels(fmt):
    for shape in SHAPES:
        levels, tensor = packed(fmt, shape)
        given_tensors = {"packed": tensor.packed, "shape": np.array(shape, np.int64)}
        model = call(fmt.decoder, given_tensors, {}, {"levels": shape})
        for (out,) in run_everywhere(model, {}):
            assert out.dtype == np.float32
            assert out.shape == shape
            np.testing.assert_array_equal(out, levels)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_decoder_of_nothing_gives_nothing(fmt, shape):
    _, tensor = packed(fmt, shape)
    given_tensors = {"packed": tensor.packed, "shape": np.array(shape, np.int64)}
    model = call(fmt.decoder, given_tensors, {}, {"levels": shape})
    for level in LEVELS:  # onnx.reference cannot flatten an empty tensor
        assert run_onnxruntime(model, {}, level)[0].shape == shape


@settings(max_examples=30)
@given(fmt=st.sampled_from(FORMATS), shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_decoder_gives_the_levels_for_any_shape(fmt, shape, seed):
    levels, tensor = packed(fmt, tuple(shape), seed=seed)
    given_tensors = {"packed": tensor.packed, "shape": np.array(shape, np.int64)}
    for (out,) in run_everywhere(call(fmt.decoder, given_tensors, {}, {"levels": shape}), {}):
        np.testing.assert_array_equal(out, levels)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize(("shape", "size"), [((3, 10), 4), ((2, 3, 3, 1), 5), ((4, 8), 8), ((2, 3), 7)])
def test_dequantizer_applies_scales_by_group(fmt, shape, size):
    _, tensor = packed(fmt, shape, PerGroup(size))
    given_tensors = {
        "packed": tensor.packed,
        "shape": np.array(shape, np.int64),
        "scale": tensor.scale,
        "group_size": np.array(size, np.int64),
    }
    for (out,) in run_everywhere(call(fmt.dequantizer, given_tensors, {}, {"values": shape}), {}):
        np.testing.assert_array_equal(out, tensor.dequantize())


def test_a_code_that_stands_for_nothing_becomes_nan():
    tensors = {"packed": np.array([[0b11_10_01_00]], np.uint8), "shape": np.array([1, 4], np.int64)}
    for (out,) in run_everywhere(call("DecodeTernary", tensors, {}, {"levels": (1, 4)}), {}):
        np.testing.assert_array_equal(out, [[-1, 0, 1, np.nan]])


TIES = np.array(
    [[0.5, 1.5, 2.5, -0.5, -1.5, 0.0, -0.0, 1e9], [3.2, -7.7, 1e-30, 127.5, 128.5, -1e9, 0.1, 5]], np.float32
)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    step=st.floats(0.0078125, 10, width=32),
    limits=st.sampled_from([(-128, 127), (0, 255), (-8, 7)]),
)
def test_quantize_equals_the_reference(seed, step, limits):
    x = np.concatenate([TIES * np.float32(step), np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)])
    inverse = np.float32(1) / np.float32(step)
    constants = {
        "inverse_step": np.array(inverse, np.float32),
        "low": np.array(limits[0], np.float32),
        "high": np.array(limits[1], np.float32),
    }
    for (out,) in run_everywhere(call("Quantize", constants, {"x": x}, {"codes": x.shape}), {"x": x}):
        np.testing.assert_array_equal(out, reference.quantize(x, inverse, *limits))


@settings(max_examples=25)
@given(seed=st.integers(0, 999), shape=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_quantize_per_token_equals_the_reference(seed, shape):
    random = np.random.default_rng(seed)
    x = random.normal(scale=10.0 ** random.integers(-7, 4), size=shape).astype(np.float32)
    codes, step = reference.quantize_per_token(x)
    for got_codes, got_step in run_everywhere(
        call("QuantizePerToken", {}, {"x": x}, {"codes": x.shape, "step": (*x.shape[:-1], 1)}), {"x": x}
    ):
        np.testing.assert_array_equal(got_codes, codes)
        np.testing.assert_array_equal(got_step, step)


def test_quantize_per_token_of_zeros_is_zero():
    x = np.zeros((2, 3), np.float32)
    for codes, step in run_everywhere(
        call("QuantizePerToken", {}, {"x": x}, {"codes": x.shape, "step": (*x.shape[:-1], 1)}), {"x": x}
    ):
        assert not codes.any()
        assert (step > 0).all()


def test_binarize_takes_the_sign_of_zero_as_plus():
    x = np.array([[0.0, -0.0, 1e-30, -1e-30], [0.5, 0.4, -3, 3]], np.float32)
    for threshold in (np.float32(0), np.array([0, 0, 0.4, 0.4], np.float32)):
        constants = {"threshold": np.asarray(threshold)}
        for (out,) in run_everywhere(call("Binarize", constants, {"x": x}, {"signs": x.shape}), {"x": x}):
            np.testing.assert_array_equal(out, reference.binarize(x, threshold))


def test_a_model_carries_only_the_functions_it_calls():
    x = np.zeros((1, 2), np.float32)
    model = call("Binarize", {"threshold": np.zeros((), np.float32)}, {"x": x}, {"signs": x.shape})
    assert [f.name for f in model.functions] == ["Binarize"]
    assert append_functions(model).functions[0].name == "Binarize"
    assert len(model.functions) == 1
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 21, "subbyte": 1}
    assert model.ir_version == 10


def test_unknown_functions_are_refused_by_name():
    with pytest.raises(UnknownNameError, match="DecodeInt4"):
        get("DecodeInt44")
    graph = helper.make_graph([helper.make_node("Frobnicate", [], ["y"], domain="subbyte")], "g", [], [])
    with pytest.raises(ExportError, match=r"subbyte\.Frobnicate"):
        model_of(graph)
