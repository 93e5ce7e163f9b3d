"""Lowering keeps every number: hand-made graphs, real exports and what falls back to float, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hand_graphs import Builder, cnn
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import assert_equal, forms_of, kernels, kinds, steps_of
from random_graphs import random_network
from run_plan import onnx_array, onnxruntime_outputs, random_inputs, run_plan

from subbyte.errors import CompileError
from subbyte.export import export
from subbyte.models import untrained
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

HOST = host_features()

# ---- hand-made graphs ----


@pytest.mark.parametrize("fmt", ["ternary", "int3", "int8", "pow2_4", "pow2_3n", "binary", "uint4"])
def test_a_small_network_is_equal_bit_for_bit_in_every_format(fmt):
    graph = assert_equal(cnn(fmt))
    assert kinds(graph).count("QuantizedProduct") == 3
    assert "FloatProduct" not in kinds(graph)


def test_a_network_becomes_six_kernels_that_stay_in_integers():
    graph = lower_graph(cnn())
    assert kinds(graph) == [
        "Elementwise",
        "Permute",
        "QuantizedProduct",
        "QuantizedProduct",
        "Pool2d",
        "QuantizedProduct",
    ]
    first, second, pool, last = kernels(graph)[1:]
    assert (steps_of(first), forms_of(first)) == (["Scale", "Bias", "Activate"], ["ToFloat", "ToCodes"])
    assert (steps_of(second), forms_of(second)) == (["Scale", "Bias", "Combine", "Activate"], ["ToCodes"])
    assert (steps_of(pool), forms_of(pool)) == (["Scale"], ["ToCodes"])
    assert (steps_of(last), forms_of(last)) == (["Scale", "Bias"], ["ToFloat"])


def test_the_compiled_plan_gives_the_same_bits_and_names_its_tensors():
    model = cnn()
    inputs = random_inputs(model)
    plan = lower(model, HOST, name="small")
    outputs, trace = run_plan(plan, inputs)
    for name, array in onnxruntime_outputs(model, inputs).items():
        assert np.array_equal(outputs[name], array)
    graph = lower_graph(model)
    values = interpret(graph, inputs, every=True)
    shown = {n: onnx_array(a, graph.values[n].storage, graph.values[n].layout) for n, a in values.items()}
    named = {node.output[0] for node in model.graph.node if node.op_type == "Quantize"}
    assert named <= {tensor.name for tensor, _ in trace}
    for tensor, array in trace:
        storage = ops.Codes(-128, 127, tensor.zero_point) if tensor.storage == "codes" else ops.Float()
        assert np.array_equal(onnx_array(array, storage, tensor.layout), shown[tensor.name]), tensor.name
    assert plan.name == "small"
    assert all(call.fallback is None for call in plan.calls)
    product = next(call for call in plan.calls if call.weights == "ternary")
    assert product.macs == 8 * 8 * 8 * 72
    assert product.activation == "uint8"
    assert 2.0 <= product.bits_per_weight < 2.2


def test_two_quantizers_of_one_value_are_stored_by_one_kernel():
    b = Builder()
    y = b.linear(b.quantize(b.input(3, 16)), "int4", 12, 16)
    one = b.linear(b.quantize(y, 10.0), "int4", 4, 12)
    other = b.linear(b.quantize(y, 33.0, 0, 15), "ternary", 4, 12)
    graph = assert_equal(b.model(b.node("Add", one, other)))
    assert forms_of(kernels(graph)[1]) == ["ToCodes", "ToCodes"]
    assert kinds(graph) == ["Elementwise"] + ["QuantizedProduct"] * 3


def test_signs_are_padded_with_plus_one():
    b = Builder()
    x = b.input(1, 40, 6, 6)
    signs = b.binarize(x, b.rng.uniform(-0.3, 0.3, (1, 40, 1, 1)))
    padded = b.node("Pad", signs, b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), b.constant(1.0))
    graph = assert_equal(b.model(b.conv(padded, "binary", 8, 40, 3, 3)))
    product = kernels(graph)[-1].operator
    assert product.left == ops.Bits(40)
    assert product.geometry.padding == (1, 1, 1, 1)


def binary_layers(second_reader: bool = False):
    """Two products of signs one after the other; with `second_reader` a third one reads the first signs."""
    b = Builder()
    signs = b.binarize(b.input(150, 128), b.rng.uniform(-0.3, 0.3, (1, 128)))
    y = b.linear(b.binarize(b.linear(signs, "binary", 96, 128)), "binary", 64, 96)
    return b.model(*([y, b.linear(signs, "binary", 32, 128)] if second_reader else [y]))


def test_a_product_makes_signs_that_it_alone_reads_where_a_row_for_both_is_preferred():
    tiles = frozenset({"amxtile", "amxint8", "avx512bw", "avx512vpopcntdq", "avx2"})
    joined = lower_graph(binary_layers(), tiles)
    assert [node.op for node in kernels(joined)] == ["BinarizedProduct", "QuantizedProduct"]
    first, second = kernels(joined)
    assert len(first.outputs) == 2
    assert first.outputs[0] == second.inputs[0]
    assert isinstance(joined.values[first.outputs[1]].storage, ops.Bits)
    assert first.outputs[1] in {node.output[0] for node in binary_layers().graph.node}
    apart = ["Elementwise", "QuantizedProduct", "QuantizedProduct"]
    assert [node.op for node in kernels(lower_graph(binary_layers(), tiles - {"amxtile"}))] == apart
    assert "BinarizedProduct" not in kinds(lower_graph(binary_layers(second_reader=True), tiles))


def test_the_plan_with_signs_that_products_make_gives_the_same_bits_and_shows_the_signs():
    """Where this CPU has no row for both, the same plan with the quantizer on its own."""
    model = binary_layers()
    inputs = random_inputs(model)
    outputs, trace = run_plan(lower(model, HOST), inputs)
    (wanted,) = onnxruntime_outputs(model, inputs).values()
    assert np.array_equal(*outputs.values(), wanted)
    values = interpret(lower_graph(model), inputs, every=True)
    shown = {tensor.name: array for tensor, array in trace}
    signs = [node.output[0] for node in model.graph.node if node.op_type == "Binarize"]
    assert len(signs) == 2
    for name in signs:
        assert np.array_equal(shown[name], values[name])


@pytest.mark.parametrize(("fill", "fmt"), [(0.0, "binary"), (-1.0, "binary"), (1.0, "int4")])
def test_signs_that_bits_cannot_serve_become_codes(fill, fmt):
    """A sign padded with 0 has three levels; other weights want codes: exact all the same."""
    b = Builder()
    x = b.input(1, 5, 6, 6)
    padded = b.node("Pad", b.binarize(x), b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), b.constant(fill))
    assert_equal(b.model(b.conv(padded, fmt, 8, 5, 3, 3)))


def test_per_token_codes_are_scaled_by_row():
    b = Builder()
    x = b.input(2, 7, 16)
    codes, step = b.node("QuantizePerToken", x, domain="subbyte", outputs=2)
    total = b.node("Round", b.node("MatMul", codes, b.node("Transpose", b.decode("ternary", 9, 16), perm=[1, 0])))
    y = b.node("Mul", b.node("Mul", total, step), b.uniform(9))
    graph = assert_equal(b.model(b.node("Add", y, b.uniform(9))))
    assert kinds(graph) == ["QuantizeTokens", "QuantizedProduct"]
    assert steps_of(kernels(graph)[1]) == ["RowScale", "Scale", "Bias"]


def test_weights_by_group_keep_their_scales_inside():
    b = Builder()
    x = b.input(3, 40)
    packed = b.constant(np.random.default_rng(0).integers(0, 256, (6, 20)), np.uint8)
    scale = b.uniform(6, 3)
    group = b.constant(16, np.int64)
    weight = b.node("DequantizeInt4", packed, b.constant([6, 40], np.int64), scale, group, domain="subbyte")
    product = b.node("MatMul", b.quantize(x), b.node("Transpose", weight, perm=[1, 0]))
    model = b.model(b.node("Mul", product, b.constant(0.05)))
    inputs = random_inputs(model)
    graph = lower_graph(model)
    assert kernels(graph)[1].operator.right.granularity.size == 16
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(interpret(graph, inputs).values())), wanted, rtol=1e-5, atol=1e-4)


def test_the_plan_with_weights_by_group_runs():
    b = Builder()
    packed = b.constant(np.random.default_rng(0).integers(0, 256, (6, 32)), np.uint8)
    sizes = b.constant([6, 64], np.int64), b.uniform(6, 2), b.constant(32, np.int64)
    weight = b.node("DequantizeInt4", packed, *sizes, domain="subbyte")
    codes = b.quantize(b.input(3, 64))
    model = b.model(b.node("MatMul", codes, b.node("Transpose", weight, perm=[1, 0])))
    inputs = random_inputs(model)
    plan = lower(model, HOST)
    assert [call.weights for call in plan.calls if call.kind == "QuantizedProduct"] == ["int4"]
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(run_plan(plan, inputs)[0].values())), wanted, rtol=1e-5, atol=1e-2)


def test_average_pools_are_exact_sums_of_codes():
    b = Builder()
    codes = b.quantize(b.input(1, 6, 8, 8), 10.0)
    ones = b.constant(np.ones((6, 1, 2, 2)))
    y = b.node("Mul", b.node("Conv", codes, ones, group=6, strides=[2, 2]), b.constant(0.1 / 4))
    graph = assert_equal(b.model(b.conv(b.quantize(y), "int4", 4, 6, 1, 1)))
    assert "Pool2d" in kinds(graph)


def test_the_maximum_is_taken_of_floats_then_quantized():
    b = Builder()
    y = b.conv(b.quantize(b.input(1, 3, 9, 9)), "int8", 8, 3, 3, 3)
    graph = assert_equal(
        b.model(b.conv(b.quantize(b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])), "int4", 4, 8, 1, 1))
    )
    pool = next(node for node in kernels(graph) if node.op == "Pool2d")
    assert (pool.operator.function, forms_of(pool)) == ("max", ["ToCodes"])


def test_codes_that_something_else_reads_are_levels():
    b = Builder()
    codes = b.quantize(b.input(2, 8), 10.0, 0, 15)
    assert_equal(b.model(b.linear(codes, "int4", 4, 8), b.node("Sqrt", codes), codes))


def test_every_elementwise_operator_joins_its_product():
    b = Builder()
    y = b.conv(b.quantize(b.input(1, 3, 6, 6)), "int8", 4, 3, 3, 3)
    y = b.node("PRelu", y, b.uniform(4, 1, 1))
    y = b.node("LeakyRelu", b.node("Sub", y, b.uniform(1, 4, 1, 1)), alpha=0.25)
    y = b.node("Clip", b.node("Div", y, b.constant(0.5)), b.constant(-1.0), b.constant(6.0))
    y = b.node("Add", y, b.uniform(1, 4, 4, 4))
    graph = assert_equal(b.model(b.node("Neg", b.node("Relu", y))))
    assert kinds(graph).count("QuantizedProduct") == 1
    assert steps_of(kernels(graph)[-1])[2:] == [
        "PRelu",
        "Bias",
        "PRelu",
        "Scale",
        "Clip",
        "Combine",
        "Activate",
        "Scale",
    ]


def test_a_value_added_to_itself():
    b = Builder()
    y = b.linear(b.quantize(b.input(2, 8)), "int4", 4, 8)
    assert_equal(b.model(b.linear(b.quantize(b.node("Add", y, y)), "int4", 3, 4)))


def test_a_value_that_is_also_an_output_is_stored_as_both():
    b = Builder()
    y = b.linear(b.quantize(b.input(2, 8)), "int4", 4, 8)
    graph = assert_equal(b.model(y, b.linear(b.quantize(y), "ternary", 3, 4)))
    assert forms_of(kernels(graph)[1]) == ["ToFloat", "ToCodes"]


@settings(max_examples=60)
@given(st.integers(0, 1 << 30))
def test_random_networks_are_equal_bit_for_bit(seed):
    model = random_network(seed)
    assert_equal(model, lower_graph(model, HOST))


# ---- fallbacks ----


def weight_only(weights="int4"):
    b = Builder()
    x = b.input(2, 8)
    if weights == "by group":
        levels = b.constant(b.rng.integers(-7, 8, (8, 4)), np.int8)
        weight = b.node("DequantizeLinear", levels, b.uniform(2, 4), axis=0, block_size=4)
    else:
        weight = b.node("Transpose", b.decode(weights, 4, 8), perm=[1, 0])
    return b.model(b.node("Mul", b.node("MatMul", x, weight), b.uniform(4)))


@pytest.mark.parametrize("weights", ["int8", "int4", "ternary", "by group"])
def test_weights_alone_are_low_bit_where_a_kernel_takes_them(weights):
    model = weight_only(weights)
    (call,) = lower(model, HOST).calls
    if weights == "by group":
        assert call.fallback.startswith("weights are int4, and no kernel multiplies floats by them: float-int8-")
        assert "scales by group" in call.fallback
        with pytest.raises(CompileError, match=r"1 layer would run in float:\n.*scales by group.*\.\n.*--strict"):
            lower(model, HOST, strict=True)
    else:
        (call,) = lower(model, HOST, strict=True).calls
        assert (call.fallback, call.activation, call.weights) == (None, "float32", weights)
        assert call.kernel.startswith("float-int8-")
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    for graph in (lower_graph(model), lower_graph(model, HOST)):
        np.testing.assert_allclose(next(iter(interpret(graph, inputs).values())), wanted, rtol=2e-6, atol=1e-6)


def test_a_product_without_a_kernel_runs_in_float_on_the_same_integers(monkeypatch):
    from subbyte.tvm_kernels import fallback

    model = cnn()
    real = fallback.choose

    def choose(op, features):
        if isinstance(op, ops.Product) and op.right.format.name == "ternary":
            raise CompileError(f"no kernel for '{op.name}' (QuantizedProduct): row: refuses ternary")
        return real(op, features)

    monkeypatch.setattr(fallback, "choose", choose)
    graph = assert_equal(model, lower_graph(model, HOST))
    fallen = [node for node in kernels(graph) if node.fallback]
    assert [(node.op, node.fallback) for node in fallen] == [("FloatProduct", "row: refuses ternary")]


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (2, 3, 5, 8)])
def test_a_layer_norm_that_is_spelled_out_is_one_kernel(shape):
    """The mean over the last of three axes is no pool over positions here."""
    b = Builder()
    x = b.input(*shape)
    mean, squared = (b.constant([-1], np.int64) for _ in range(2))
    centred = b.node("Sub", x, b.node("ReduceMean", x, mean))
    variance = b.node("ReduceMean", b.node("Pow", centred, b.constant(2)), squared)
    y = b.node("Div", centred, b.node("Sqrt", b.node("Add", variance, b.constant(1e-5))))
    model = b.model(b.node("Add", b.node("Mul", y, b.uniform(8)), b.uniform(8)))
    graph = lower_graph(model)
    assert kinds(graph) == ["LayerNorm"]
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(interpret(graph, inputs).values())), wanted, rtol=1e-5, atol=1e-5)


# ---- real exports ----


def exported(tmp_path, name, scheme):
    model, examples = untrained(name, scheme)
    export(model, tmp_path / "m.onnx", example=examples, check=False)
    return onnx.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("mlp", "pow2"), ("resnet8", "int8"), ("resnet8", "binary"), ("ds_cnn", "int4"), ("vit_micro", "ternary")],
)
def test_exports_of_the_zoo_are_equal_bit_for_bit(tmp_path, name, scheme):
    graph = assert_equal(exported(tmp_path, name, scheme))
    assert "FloatProduct" not in kinds(graph)
    assert not [node.name for node in kernels(graph) if node.fallback]
    assert set(kinds(graph)) <= {
        *("Elementwise", "QuantizedProduct", "Pool2d", "LayerNorm", "BatchMatMul", "Softmax", "QuantizeTokens"),
        *("Concat", "Permute", "Part"),
    }


def test_the_plan_of_a_transformer_runs(tmp_path):
    model = exported(tmp_path, "vit_micro", "ternary")
    inputs = random_inputs(model)
    outputs, _ = run_plan(lower(model, HOST), inputs)
    wanted = onnxruntime_outputs(model, inputs)["logits"]
    np.testing.assert_allclose(outputs["logits"], wanted, atol=1e-3)
