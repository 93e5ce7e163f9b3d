"""What inspection counts: formats, MACs, bits and bytes, of our files and of onnxruntime's int8 ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as helper
import onnx.parser
import pytest
from dialect_graphs import quantized_cnn

import subbyte
from subbyte.dialect.graph import view
from subbyte.errors import ModelError
from subbyte.export import float_baseline, inspect, int8_baseline
from subbyte.export.onnx_file import save_onnx

X = np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)


def test_layers_of_a_quantized_file(tmp_path):
    size = len(save_onnx(quantized_cnn(), tmp_path / "m.onnx"))
    found = inspect(tmp_path / "m.onnx")
    conv, head = found.layers
    assert (conv.op, conv.weight_format, conv.activation_format, conv.shape) == (
        "Conv",
        "ternary",
        "int8",
        (8, 3, 3, 3),
    )
    assert conv.macs == 2 * 8 * 3 * 3 * 27
    assert conv.parameter_bytes == 8 * 7 + 4 * 8 + 4 * 8  # rows of ceil(27 * 2 / 8) bytes, scales, biases
    assert conv.float_bytes == 4 * (8 * 27 + 8)
    assert conv.bits_per_weight == pytest.approx(8 * (8 * 7 + 32) / (8 * 27))
    assert (head.op, head.weight_format, head.activation_format, head.shape) == ("MatMul", "int4", "uint8", (4, 8))
    assert head.macs == 2 * 8 * 4
    assert found.macs == conv.macs + head.macs
    assert found.file_bytes == size
    assert found.inputs == {"input": (2, 3, 6, 6)}
    assert found.outputs == {"logits": (2, 4)}
    assert (found.opset, found.ir_version) == (21, 10)
    assert found.smaller == found.float_bytes / size


@pytest.mark.parametrize(
    ("name", "bits"), [("binary", 1), ("int2", 2), ("int3", 3), ("pow2_4", 4), ("uint5", 5), ("int8", 8)]
)
def test_weight_formats_are_named_and_weighed(name, bits):
    conv = inspect(quantized_cnn(name)).layers[0]
    assert conv.weight_format == name
    assert conv.parameter_bytes == 8 * -(-27 * bits // 8) + 64


def test_a_float_file_is_as_large_as_its_parameters():
    found = inspect(float_baseline(quantized_cnn()))
    assert [layer.weight_format for layer in found.layers] == ["float32", "float32"]
    assert [layer.bits_per_weight for layer in found.layers] == [32, 32]
    assert found.parameters == 8 * 27 + 8 + 4 * 8 + 4
    assert found.float_bytes == 4 * found.parameters


def test_scales_zero_points_and_steps_are_no_weights():
    """The same network has as many weights in every file."""
    float_file = float_baseline(quantized_cnn())
    files = [quantized_cnn(), quantized_cnn("binary"), float_file, int8_baseline(float_file, [X])]
    assert [inspect(file).parameters for file in files] == [8 * 27 + 8 + 4 * 8 + 4] * 4


def test_qdq_files_of_onnxruntime_are_read():
    found = inspect(int8_baseline(float_baseline(quantized_cnn()), [X]))
    conv = found.layers[0]
    assert (conv.op, conv.weight_format, conv.activation_format, conv.shape) == ("Conv", "int8", "uint8", (8, 3, 3, 3))
    assert conv.macs == 2 * 8 * 3 * 3 * 27
    assert conv.parameter_bytes == 8 * 27 + 8 * (4 + 1) + 4 * 8  # weights, scale and zero point a channel, bias


def product(op="MatMul", weight=(4, 3), shape=(1, 4), value=1.0, **attributes):
    constant = onnx.numpy_helper.from_array(np.full(weight, value, np.float32), "w")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)], "g", [x], [y], [constant]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def saved(model, folder):
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (product(weight=(5, 3)), "'?layer.*Incompatible dimensions"),
        (product("Gemm", weight=(5, 3)), "layer.*5 and 4"),
        (product("Conv", weight=(6, 4, 3, 3), shape=(1, 3, 8, 8)), r"'layer' does not fit.*\[1, 3, 8, 8\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(model, words, tmp_path):
    with pytest.raises(ModelError, match=words):
        inspect(saved(model, tmp_path))


def test_what_no_engine_could_run_is_refused(tmp_path):
    model = product()
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match="opset 99; opsets up to"):
        inspect(saved(model, tmp_path))
    model = product()
    del model.graph.output[:]
    with pytest.raises(ModelError, match="no outputs"):
        inspect(saved(model, tmp_path))


def test_a_dynamic_shape_and_nan_are_warnings(tmp_path):
    found = inspect(saved(product(shape=("batch", 4), value=np.nan), tmp_path))
    assert found.macs == 0
    assert found.inputs == {"x": (0, 4)}
    dynamic, nan = found.warnings
    assert "[batch, 4]" in dynamic
    assert "'w' contains 12 NaN" in nan
    assert inspect(product()).warnings == ()
    assert inspect(product()).macs == 12


def test_shapes_that_a_file_states_wrongly_do_not_matter(tmp_path):
    """Engines go by what they infer."""
    model = product()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (3, 7)))
    assert inspect(saved(model, tmp_path)).macs == 12


def test_a_payload_that_does_not_fit_is_refused():
    model = quantized_cnn()
    packed = next(t for t in model.graph.initializer if t.name == "/conv.packed")
    packed.dims[1] = 6
    packed.raw_data = packed.raw_data[: 8 * 6]
    with pytest.raises(ModelError, match=r"/conv/DecodeTernary.*payload"):
        inspect(model)


def test_a_shape_beyond_its_payload_takes_no_memory():
    model = quantized_cnn()
    shape = next(t for t in model.graph.initializer if t.name == "/conv.shape")
    shape.raw_data = np.array([1 << 56, 3, 3, 3], np.int64).tobytes()
    decoder = next(node for node in model.graph.node if node.op_type == "DecodeTernary")
    with pytest.raises(ModelError, match=r"/conv/DecodeTernary.*payload"):
        view(model).low_bit(decoder)


def test_a_kernel_larger_than_its_input_is_refused():
    model = quantized_cnn()
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "kernel_shape").ints[0] = 99
    with pytest.raises(ModelError, match=r"'conv\.product' would be \[2, 8, -\d+, 3\]"):
        inspect(model)


def test_a_recurrent_layer_is_counted():
    """3 steps of 2 sequences through 4 gates of 5 from 4 inputs and 5 states; only the last state is read."""
    model = product("LSTM", weight=(1, 20, 4), shape=(3, 2, 4), hidden_size=5)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 20, 5), np.float32), "r"))
    model.graph.node[0].input.append("r")
    model.graph.node[0].output[:] = ["", "y"]
    assert inspect(model).macs == 3 * 2 * 20 * (4 + 5)


def test_products_that_are_no_layers_are_warnings():
    """Their MACs are counted where shapes tell them, and a zero is never without a word."""
    model = product("ConvTranspose", weight=(4, 3, 1, 1), shape=(1, 4, 2, 2))
    assert inspect(model).warnings == ("ConvTranspose 'layer': not among the layers, and 48 MACs are in the sum",)
    assert inspect(model).macs == 4 * 2 * 2 * 3
    model = product("Einsum", weight=(4, 3), shape=(2, 4), equation="ij,jk->ik")
    assert inspect(model).macs == 2 * 4 * 3
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert "Einsum 'layer': not among the layers, and MACs are counted as 0" in inspect(model).warnings
    model = product()
    model.graph.node[0].op_type, model.graph.node[0].domain = "MatMulNBits", "com.microsoft"
    model.graph.node[0].attribute.extend(helper.make_attribute(name, size) for name, size in (("K", 4), ("N", 3)))
    model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], "gelu", domain="com.microsoft"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 3]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (line,) = inspect(model).warnings
    assert line == "com.microsoft.MatMulNBits 'layer': not among the layers, and 12 MACs are in the sum"


HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1, "other": 1]>'


def parsed(body, size="2,4"):
    return onnx.parser.parse_model(f"{HEAD} g (float[{size}] x, float[4,4] w) => (float[2,4] y) {{ {body} }}")


@pytest.mark.parametrize("read", [inspect, float_baseline, subbyte.compile], ids=lambda read: read.__name__)
def test_every_unknown_operator_is_named_and_none_counts_as_zero(read, tmp_path):
    """Of a domain whose operators onnxruntime has, too."""
    body = "a = com.microsoft.FusedMatMul(x, w) b = com.microsoft.FusedMatMul(a, w) c = com.microsoft.Gelu(b)"
    model = parsed(body + " y = other.Frob(c)")
    arguments = [tmp_path / "m.subbyte"] if read is subbyte.compile else []
    names = r"com.microsoft.FusedMatMul \(node 'a' and 1 more\), other.Frob \(node 'y'\)"
    with pytest.raises(ModelError, match=f"m.onnx': unknown operator {names}"):
        read(saved(model, tmp_path), *arguments)


@pytest.mark.parametrize("read", [inspect, float_baseline])
def test_an_operator_that_onnx_does_not_have_is_unknown_in_memory_too(read):
    with pytest.raises(ModelError, match=r"operator MatMull \(node 'y'\). Did you mean 'MatMul'"):
        read(parsed("y = MatMull(x, w)"))


@pytest.mark.parametrize("domain", ["other", "com.microsoft"])
def test_products_in_the_functions_of_a_file_are_layers(domain):
    body = f'<domain: "{domain}", opset_import: ["": 21]> FusedMatMul (x, w) => (y) {{ p = MatMul(x, w) y = Relu(p) }}'
    model = onnx.parser.parse_model(
        f"{HEAD} g (float[2,4] x, float[4,4] w) => (float[2,4] y) {{ y = {domain}.FusedMatMul(x, w) }} {body}"
    )
    found = inspect(model)
    assert (found.macs, [layer.op for layer in found.layers], found.warnings) == (2 * 4 * 4, ["MatMul"], ())
    assert [node.op_type for node in float_baseline(model).graph.node] == ["MatMul", "Relu"]


def test_what_cannot_be_counted_is_said():
    """Behind an operator whose shape the file does not tell, and in a subgraph."""
    found = inspect(parsed("a = com.microsoft.GatherBlockQuantized(x, x) y = MatMul(a, w)"))
    assert found.macs == 0
    assert found.warnings == ("MatMul 'y': its shapes are unknown: MACs are counted as 0",)
    branch = "(float[2,4] z) { z = MatMul(x, w) }"
    branches = f"then_branch = t () => {branch}, else_branch = e () => {branch}"
    body = f"c = Constant <value = bool {{1}}> () y = If (c) <{branches}>"
    (line,) = inspect(parsed(body)).warnings
    assert line.startswith("If 'y': products in a subgraph, whose MACs are counted as 0")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("Quant({}, s, z, b)", "int4"),
        ("Quant <signed = 0> ({}, s, z, b)", "uint4"),
        ("BipolarQuant({}, s)", "binary"),
    ],
)
def test_a_qonnx_file_is_described(call, name):
    """Its weights are float32 in the file, and low bit when it is run; a scale is no weight."""
    a, b = (f"qonnx.custom_op.general.{call}".format(value) for value in "xw")
    more = ", float z = {0}, float b = {4}" if "z" in call else ""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "qonnx.custom_op.general": 1]> g (float[2,4] x) => (float[2,3] y)'
        f" <float[4,3] w = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float s = {{0.1}}{more}>"
        f" {{ q = {a} v = {b} y = MatMul(q, v) }}"
    )
    found = inspect(model)
    (layer,) = found.layers
    assert (layer.weight_format, layer.activation_format, layer.shape) == (name, name, (4, 3))
    assert (layer.parameter_bytes, layer.bits_per_weight) == (4 * 12, 32)
    assert (found.macs, found.parameters, found.warnings) == (2 * 4 * 3, 12, ())
