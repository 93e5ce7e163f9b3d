"""Running files in onnxruntime: batches, values inside, the integers of products, and inputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from dialect_graphs import quantized_cnn
from integer_sums import conv2d, matmul

from subbyte.dialect.graph import view
from subbyte.errors import ExportError, InputError
from subbyte.export import largest_accumulators, onnx_codes, run_onnx
from subbyte.formats import reference

X = np.random.default_rng(1).normal(size=(5, 3, 6, 6)).astype(np.float32)


def test_codes_are_named_in_the_order_of_the_graph():
    assert onnx_codes(quantized_cnn()) == ["/conv.codes", "/pool.codes", "/head.codes"]


@pytest.mark.parametrize("fmt", ["ternary", "binary", "int3", "pow2_4"])
def test_values_inside_equal_the_reference(fmt):
    model = quantized_cnn(fmt)
    found = run_onnx(model, X[:2], ["/conv.codes", "conv.product", "head.product", "/head.codes"])
    codes = reference.quantize(X[:2], 40.0, -128, 127)
    np.testing.assert_array_equal(found["/conv.codes"], codes)
    graph = view(model)
    weights = graph.low_bit(graph.producers["/conv.levels"]).levels()
    sums = conv2d(codes.transpose(0, 2, 3, 1), weights.transpose(0, 2, 3, 1), (2, 2), (1, 1, 1, 1))
    np.testing.assert_array_equal(found["conv.product"], sums.transpose(0, 3, 1, 2))
    head = graph.low_bit(graph.producers["/head.levels"]).levels()
    sums = matmul(found["/head.codes"].astype(np.int32), head)
    np.testing.assert_array_equal(found["head.product"], sums)


def test_more_samples_than_the_batch_run_in_slices():
    model = quantized_cnn()
    together = run_onnx(model, X, ["/pool.codes"])
    assert together["logits"].shape == (5, 4)
    for i in range(5):
        alone = run_onnx(model, X[[i, i]], ["/pool.codes"])
        np.testing.assert_array_equal(alone["logits"][0], together["logits"][i])
        np.testing.assert_array_equal(alone["/pool.codes"][1], together["/pool.codes"][i])


def test_optimised_and_plain_are_bit_equal():
    for seed in range(5):
        model = quantized_cnn("int4", seed)
        plain, optimised = run_onnx(model, X), run_onnx(model, X, optimized=True)
        np.testing.assert_array_equal(plain["logits"], optimised["logits"])


def test_the_largest_accumulator_is_the_largest_sum():
    model = quantized_cnn("int8")
    found = largest_accumulators(model, X)
    assert set(found) == {"conv.product", "pool.sum", "head.product"} - {"pool.sum"}
    assert found["conv.product"] == np.abs(run_onnx(model, X, ["conv.product"])["conv.product"]).max()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X[:, :2], "the model expects"),
        (X[0], "the model expects"),
        ({"image": X}, "the model expects"),
        ({"input": X, "other": X}, "the model expects"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(InputError, match=message):
        run_onnx(quantized_cnn(), inputs)


def test_a_value_that_is_not_there_is_an_error():
    with pytest.raises(ExportError, match="no value 'nothing'"):
        run_onnx(quantized_cnn(), X, ["nothing"])


def test_a_model_that_onnxruntime_refuses_is_an_error():
    model = quantized_cnn()
    model.graph.node[-1].op_type = "Det"  # of one input
    with pytest.raises(ExportError, match="onnxruntime refuses"):
        run_onnx(model, X)
