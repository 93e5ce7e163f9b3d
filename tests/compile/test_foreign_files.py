"""Low-bit files of other trainers lower to the same kernels: QDQ of onnxruntime, MatMulNBits, QONNX."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from hand_graphs import Builder
from lowered import kernels, kinds
from run_plan import onnxruntime_outputs, random_inputs

import subbyte
from subbyte.errors import ModelError
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower_graph


def float_network(heads=False):
    """Convolution, depthwise, residual, max pool, Gemm: in float; with `heads` three outputs of different shapes."""
    b = Builder()
    x = b.input(1, 3, 10, 10)

    def conv(y, out, depth, **attributes):
        weight = b.constant(b.rng.normal(0, 0.3, (out, depth, 3, 3)))
        return b.node("Conv", y, weight, b.uniform(out), **attributes)

    y = b.node("Relu", conv(x, 8, 3, pads=[1, 1, 1, 1]))
    z = b.node("Relu", b.node("Add", conv(y, 8, 1, group=8, pads=[1, 1, 1, 1]), y))
    z = b.node("MaxPool", z, kernel_shape=[2, 2], strides=[2, 2])
    flat = b.node("Flatten", z)
    hidden = b.node("Relu", b.node("Gemm", flat, b.constant(b.rng.normal(0, 0.1, (12, 200))), b.uniform(12), transB=1))
    scores = b.node("MatMul", hidden, b.constant(b.rng.normal(0, 0.3, (12, 5))))
    if not heads:
        return b.model(scores)
    best = b.node("ArgMax", scores, axis=1, keepdims=0)
    return b.model(conv(y, 6, 8), scores, z, best)


def quantized_by_onnxruntime(folder, activations, weights, per_channel, symmetric, opset=21, heads=False):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = [
                {"x": np.random.default_rng(i).standard_normal((1, 3, 10, 10)).astype(np.float32)} for i in range(4)
            ]

        def get_next(self):
            return self.left.pop() if self.left else None

    network = float_network(heads)
    if opset < 21:
        network.opset_import[0].version, network.ir_version = opset, 8
    logging.disable(logging.WARNING)  # its advice on pre-processing
    try:
        onnx.save(network, folder / "f.onnx")
        quantize_static(
            folder / "f.onnx",
            folder / "q.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType[activations],
            weight_type=QuantType[weights],
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": weights.startswith("QI")},
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "q.onnx")


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(
    ("activations", "weights", "per_channel", "symmetric"),
    [
        ("QUInt8", "QInt8", True, False),
        ("QInt8", "QInt8", True, True),
        ("QInt8", "QInt8", False, False),
        ("QUInt8", "QUInt8", False, False),
        ("QUInt8", "QInt4", True, False),
        ("QInt8", "QInt4", False, False),
        ("QInt8", "QUInt4", False, True),
        ("QInt4", "QInt4", True, False),  # codes of 4 bits saturate at 4 bits, though a byte holds each
        ("QUInt4", "QInt4", False, False),
    ],
)
def test_qdq_files_of_onnxruntime_run_on_integer_kernels(tmp_path, activations, weights, per_channel, symmetric, opset):
    """Below opset 21 its quantizer writes 4 bits with operators of its own domain."""
    model = quantized_by_onnxruntime(tmp_path, activations, weights, per_channel, symmetric, opset)
    if opset < 21 and "4" in activations + weights:
        assert ("com.microsoft", "DequantizeLinear") in {(node.domain, node.op_type) for node in model.graph.node}
    inputs = random_inputs(model)
    graph = lower_graph(model)
    assert kinds(graph).count("QuantizedProduct") == 4
    assert "FloatProduct" not in kinds(graph)
    products = [kernel.operator for kernel in kernels(graph) if hasattr(kernel.operator, "right")]
    if "4" in weights:
        assert max(product.right.format.code_bits for product in products) <= 5  # uint4 less its zero point
    got, wanted = (next(iter(f(a, inputs).values())) for f, a in ((interpret, graph), (onnxruntime_outputs, model)))
    step = np.unique(np.abs(wanted[wanted != 0])).min()  # of the output's own quantizer, at least
    assert np.abs(got - wanted).max() <= step * 1.001
    assert np.mean(got == wanted) >= 0.6


@pytest.mark.parametrize("activations", ["QInt8", "QInt4"])
def test_a_file_in_onnxruntimes_own_domain_compiles_and_runs(tmp_path, activations):
    import subbyte
    from subbyte.export import inspect

    model = quantized_by_onnxruntime(tmp_path, activations, "QInt4", True, False, 17)
    subbyte.compile(tmp_path / "q.onnx", tmp_path / "q.subbyte", strict=True)
    inputs = random_inputs(model)
    with subbyte.load(tmp_path / "q.subbyte") as session:
        got = session.run(inputs["x"])
    (wanted,) = onnxruntime_outputs(model, inputs).values()
    step = np.unique(np.abs(wanted[wanted != 0])).min()
    assert np.abs(got - wanted).max() <= step * 1.001
    found = inspect(tmp_path / "q.onnx")
    assert {(layer.weight_format, layer.activation_format) for layer in found.layers} == {
        ("int4", activations[1:].lower())
    }


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "QDQ"])
def test_a_file_with_several_outputs_compiles_and_runs(tmp_path, quantized):
    """In the order and by the names of the file, each as onnxruntime gives it."""
    import subbyte

    if quantized:
        model = quantized_by_onnxruntime(tmp_path, "QUInt8", "QInt8", True, False, heads=True)
    else:
        model = float_network(heads=True)
    onnx.save(model, tmp_path / "m.onnx")
    inputs = random_inputs(model)
    wanted = onnxruntime_outputs(model, inputs)
    subbyte.compile(tmp_path / "m.onnx", tmp_path / "m.subbyte")
    with subbyte.load(tmp_path / "m.subbyte", threads=1) as session:
        got = session.run(inputs["x"])
        report = session.check_golden()
    assert list(got) == [output.name for output in model.graph.output]
    assert [array.shape for array in got.values()] == [(1, 6, 8, 8), (1, 5), (1, 8, 5, 5), (1,)]
    assert report.ok
    assert [row.name for row in report.outputs] == list(got)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())


def test_scales_that_do_not_fit_onnxruntimes_own_dequantize_linear_are_refused(tmp_path):
    model = quantized_by_onnxruntime(tmp_path, "QUInt8", "QInt4", True, False, 17)
    node = next(
        n for n in model.graph.node if n.op_type == "DequantizeLinear" and any(a.name == "axis" for a in n.attribute)
    )
    del node.attribute[:]
    with pytest.raises(ModelError, match="do not fit one scale for all"):
        lower_graph(model)
    node.attribute.append(helper.make_attribute("axis", 3))
    with pytest.raises(ModelError, match="do not fit axis 3"):
        lower_graph(model)


def test_matmul_nbits_is_dequantized_and_named():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (6, 2, 16))
    scale = rng.uniform(0.01, 0.1, (6, 2)).astype(np.float32)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    weight = ((codes - 8) * scale[..., None]).reshape(6, 32)[:, :30].astype(np.float32)
    info = [helper.make_tensor_value_info("x", 1, (3, 30))], [helper.make_tensor_value_info("y", 1, (3, 6))]
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "nbits", "", "com.microsoft", K=30, N=6, bits=4, block_size=16
    )
    constants = [onnx.numpy_helper.from_array(packed, "w"), onnx.numpy_helper.from_array(scale.reshape(-1), "s")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", *info, constants), opset_imports=opsets, ir_version=10)
    graph = lower_graph(model)
    inputs = random_inputs(model)
    np.testing.assert_allclose(interpret(graph, inputs)["y"], inputs["x"] @ weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(onnxruntime_outputs(model, inputs)["y"], inputs["x"] @ weight.T, rtol=1e-4, atol=1e-4)
    assert "weight-only MatMulNBits" in kernels(graph)[0].fallback


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_qonnx_quantizers_are_those_of_the_reference(bits: int, signed: int, narrow: int, tmp_path: Path) -> None:
    """Also of one bit: signed, QONNX makes it -1 and +1, whether narrow or not."""
    b, domain = Builder(), "qonnx.custom_op.general"
    x = b.input(5, 12)
    a = b.node(
        *("Quant", x, b.constant(0.25), b.constant(0.0), b.constant(float(bits))),
        domain=domain,
        signed=signed,
        narrow=narrow,
        rounding_mode="ROUND",
    )
    weight = b.constant(b.rng.normal(0, 0.4, (12, 5)).astype(np.float32))
    if signed:
        quantizer = {"domain": domain, "signed": 1, "narrow": narrow, "rounding_mode": "ROUND"}
        weight = b.node("Quant", weight, b.constant(0.125), b.constant(0.0), b.constant(float(bits)), **quantizer)
    y = b.node("MatMul", a, weight)
    infos = [helper.make_tensor_value_info(name, 1, (5, n)) for name, n in ((a, 12), (y, 5))]
    graph = helper.make_graph(b.nodes, "g", b.inputs, infos, b.constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    subbyte.compile(model, tmp_path / "m.subbyte")  # replayed against the reference
    span = 1 << bits
    low, high = (narrow - span // 2, span // 2 - 1) if signed else (0, span - 1 - narrow)
    inputs = random_inputs(model)
    codes = np.clip(np.rint(inputs[x] / np.float32(0.25)), low, high)
    codes = np.where(inputs[x] >= 0, 1, -1) if signed and bits == 1 else codes
    got = interpret(lower_graph(model), inputs)
    assert np.array_equal(got[a], codes.astype(np.float32) * np.float32(0.25))


@pytest.mark.parametrize("bits", [0.0, 2.5, 9.0, [2.0, 4.0]])
def test_qonnx_bits_that_are_no_number_of_bits_are_refused(bits: Any) -> None:
    b, domain = Builder(), "qonnx.custom_op.general"
    y = b.node("Quant", b.input(3, 2), b.constant(0.25), b.constant(0.0), b.constant(bits), domain=domain)
    graph = helper.make_graph(b.nodes, "g", b.inputs, [helper.make_tensor_value_info(y, 1, (3, 2))], b.constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    with pytest.raises(ModelError, match="handled: one whole number of 1 to 8 bits"):
        lower_graph(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_qonnx_quantizers_become_integer_products():
    b = Builder()
    x = b.input(2, 12)
    domain = "qonnx.custom_op.general"
    weight = b.rng.normal(0, 0.4, (12, 5)).astype(np.float32)
    signed = {"domain": domain, "signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    zero, four = b.constant(0.0), b.constant(4.0)
    a = b.node("Quant", x, b.constant(0.25), zero, four, **{**signed, "narrow": 0})
    w = b.node("Quant", b.constant(weight), b.constant(0.125), zero, four, **signed)
    y = b.node("MatMul", a, w)
    infos = [helper.make_tensor_value_info(y, 1, (2, 5))]
    graph = helper.make_graph(b.nodes, "g", b.inputs, infos, b.constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    lowered = lower_graph(model)
    assert kinds(lowered) == ["Elementwise", "QuantizedProduct"]
    assert kernels(lowered)[1].operator.right.format.name == "int4"
    inputs = random_inputs(model)
    codes = np.clip(np.rint(inputs["x"] / np.float32(0.25)), -8, 7) @ np.clip(
        np.rint(weight / np.float32(0.125)), -7, 7
    )
    assert np.array_equal(interpret(lowered, inputs)[y], codes.astype(np.float32) * np.float32(0.25 * 0.125))
