"""Files that are damaged, hostile or out of reach: each is refused with what is wrong and what to do."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from hand_graphs import Builder, cnn
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte.errors import CompileError, ModelError, SubbyteError, UsageError
from subbyte.files import limits
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.onnx_model import load_model
from subbyte.tvm_kernels.read_graph import read_graph

FLOAT = onnx.TensorProto.FLOAT


def model_of(nodes, inputs=("x",), shape=(1, 4), constants=(), rank=2, **options):
    infos = [helper.make_tensor_value_info(name, FLOAT, shape) for name in inputs]
    output = [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, ["?"] * rank)]
    graph = helper.make_graph(nodes, "g", infos, output, list(constants))
    return helper.make_model(graph, opset_imports=options.pop("opsets", [helper.make_opsetid("", 21)]), ir_version=10)


def test_a_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"there is no ONNX file .*m\.onnx"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is an empty file; expected a .onnx file"),
        (b"hello", "it is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\x00" * 100, "or it is truncated or damaged"),
        (b"PK\x03\x04" + b"\x00" * 64, "a damaged or truncated zip archive"),
        (b"\x08\x0a\x12\x07pytorch", "or it is truncated or damaged"),
        (struct.pack("<Q", 2) + b"{}", "a safetensors file"),
    ],
)
def test_other_files_are_refused_with_what_they_are(tmp_path, content, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"m.onnx. is not an ONNX file, .*{words}"):
        load_model(path)


def test_every_truncation_is_refused(tmp_path):
    whole = cnn().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(1, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_graph(load_model(path))


@settings(max_examples=100)
@given(st.data())
def test_damaged_bytes_never_escape_as_other_errors(data):
    """Any byte may be changed: the model compiles to something or is refused by an error of ours."""
    whole = bytearray(cnn().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = onnx.ModelProto.FromString(bytes(whole))
    except Exception:
        return
    with contextlib.suppress(SubbyteError):
        lower_graph(model)


def test_too_large_and_too_many(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    onnx.save(cnn(), path)
    monkeypatch.setattr(limits, "NODES", 3)
    with pytest.raises(ModelError, match=r"has \d+ nodes, at most 3 are accepted"):
        load_model(path)
    monkeypatch.setattr(limits, "ONNX_BYTES", 100)
    with pytest.raises(ModelError, match="holds at most 100"):
        load_model(path)


def test_an_unknown_operator_is_named_with_the_nearest():
    with pytest.raises(ModelError, match=r"opset 21 .* no operator Sofmax \(node 'bad'\).*Did you mean 'Softmax'"):
        load_model(model_of([helper.make_node("Sofmax", ["x"], ["y"], "bad")]))


def test_an_unknown_domain_is_named():
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
    with pytest.raises(ModelError, match=r"acme\.Warp.*model-local function"):
        load_model(model_of([helper.make_node("Warp", ["x"], ["y"], domain="acme")], opsets=opsets))


def test_a_function_without_its_body_is_named():
    model = cnn()
    del model.functions[:]
    with pytest.raises(
        ModelError,
        match=r"subbyte\.\w+ of version 1 .* whose body is not in the file; this subbyte reads versions 1 to",
    ):
        load_model(model)


def test_a_cycle_is_found():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second")]
    with pytest.raises(ModelError, match="cycle through node 'first'"):
        load_model(model_of(nodes))


def test_the_node_that_is_named_is_on_the_cycle():
    """Not one that only reads what the cycle makes, though it stands first in the file."""
    nodes = [
        helper.make_node("Relu", ["c"], ["b"], "behind"),
        helper.make_node("Relu", ["x"], ["a"], "before"),
        helper.make_node("Add", ["a", "c"], ["d"], "first"),
        helper.make_node("Relu", ["d"], ["c"], "second"),
    ]
    with pytest.raises(ModelError, match=r"cycle through node '(first|second)'"):
        load_model(model_of(nodes))


def test_unsorted_nodes_are_sorted():
    nodes = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["x"], ["a"])]
    model = model_of(nodes)
    model.graph.output[0].name = "b"
    assert [node.op_type for node in load_model(model).graph.node] == ["Neg", "Relu"]


def test_a_dynamic_shape_says_which_and_how_to_fix():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], shape=("batch", 4))
    with pytest.raises(ModelError, match=r"'x' has a dynamic shape \[batch, 4\].*make_dynamic_shape_fixed"):
        load_model(model)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_more_inputs_and_outputs_than_a_bundle_has_are_refused_before_the_work(side):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    more = [helper.make_tensor_value_info(f"v{i}", onnx.TensorProto.FLOAT, (1, 4)) for i in range(256)]
    if side == "inputs":
        model.graph.input.extend(more)
    else:
        model.graph.node.extend(helper.make_node("Neg", ["y"], [value.name]) for value in more)
        model.graph.output.extend(more)
    with pytest.raises(ModelError, match=f"the graph has 257 {side}, a bundle at most 256; join them with Concat"):
        load_model(model)


def test_a_sparse_initializer_is_named():
    values = onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([0, 5], np.int64))
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    with pytest.raises(ModelError, match="initializer 'w' is sparse, only dense ones are compiled"):
        load_model(model)


def test_a_tensor_of_more_axes_than_arrays_have_is_refused():
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1] * 100_000, raw_data=bytes(4))
    model = model_of([helper.make_node("Squeeze", ["w"], ["q"]), helper.make_node("Add", ["x", "q"], ["y"])])
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="tensor 'w' has 100000 axes, at most 32 are read"):
        load_model(model)


def test_a_shape_that_depends_on_values_is_refused():
    nodes = [helper.make_node("NonZero", ["x"], ["i"], "nz"), helper.make_node("Cast", ["i"], ["y"], to=FLOAT)]
    with pytest.raises(ModelError, match=r"'i' \(node 'nz'\) depends on run-time values"):
        read_graph(load_model(model_of(nodes)))


def test_a_missing_initializer_is_named():
    with pytest.raises(ModelError, match="reads 'w', which is not an input"):
        load_model(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])]))


def test_two_makers_of_one_value_are_refused():
    with pytest.raises(ModelError, match="'y' is made by two nodes"):
        load_model(model_of([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]))


# ---- graphs that are ONNX, but make no sense ----


def numbers(name, *values, shape=None):
    return onnx.numpy_helper.from_array(np.array(values, np.float32).reshape(shape or -1), name)


def test_a_graph_without_outputs_is_refused():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    del model.graph.output[:]
    with pytest.raises(ModelError, match="no outputs"):
        load_model(model)


def test_an_opset_from_the_future_is_refused_with_the_range():
    newest = onnx.defs.onnx_opset_version()
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opsets=[helper.make_opsetid("", 99)])
    with pytest.raises(ModelError, match=f"opset 99;.*from 13 to {newest}"):
        load_model(model)
    model.opset_import[0].version = newest
    assert read_graph(load_model(model)).opset == newest


@pytest.mark.parametrize(
    ("shapes", "attributes", "words"),
    [
        (((1, 3, 8, 8), (6, 4, 3, 3)), {}, r"3 channels in \[1, 3, 8, 8\]"),
        (((1, 4, 8, 8), (6, 4, 3, 3)), {"group": 2}, "4 channels"),
        (((1, 4, 8, 8), (5, 2, 3, 3)), {"group": 2}, r"\[5, 2, 3, 3\] in 2 group"),
        (((1, 4, 8, 8), (6, 4, 3, 3), (5,)), {}, r"bias has shape \[5\], expected \[6\]"),
        (((1, 4), (6, 4, 3, 3)), {}, "no convolution"),
    ],
)
def test_a_convolution_of_the_wrong_shape_is_refused(shapes, attributes, words):
    """Shape inference sees no channels; a kernel would read beyond its input."""
    weights = [numbers(f"w{i}", *[1] * int(np.prod(shape)), shape=shape) for i, shape in enumerate(shapes[1:])]
    node = helper.make_node("Conv", ["x", *(tensor.name for tensor in weights)], ["y"], "conv", **attributes)
    with pytest.raises(ModelError, match=rf"'conv'.*{words}"):
        read_graph(load_model(model_of([node], shape=shapes[0], constants=weights, rank=4)))


@pytest.mark.parametrize(
    ("op", "values", "transposed"),
    [
        ("MatMul", [1, np.nan, 2, 3], False),
        ("MatMul", [1, np.inf, 2, 3], False),
        ("MatMul", [1, np.nan, 2, 3], True),
        ("Mul", [1, -np.inf, 2, 3], False),
        ("Add", [1, np.inf, 2, 3], False),
        ("Max", [1, np.nan, 2, 3], False),
    ],
)
def test_weights_that_are_no_numbers_are_refused(op, values, transposed):
    nodes = [helper.make_node(op, ["x", "wt" if transposed else "w"], ["y"])]
    if transposed:
        nodes.insert(0, helper.make_node("Transpose", ["w"], ["wt"]))
    shape = (1, 4) if transposed or op != "MatMul" else (4, 1)
    with pytest.raises(ModelError, match=r"tensor 'w': 1 of its 4 elements are NaN or infinite.*Train it again"):
        read_graph(load_model(model_of(nodes, constants=[numbers("w", *values, shape=shape)])))


@pytest.mark.parametrize("op", ["Add", "Max", "Min"])
def test_infinities_that_mask_or_bound_are_accepted(op):
    values = numbers("w", 0, -np.inf, 0, 1, shape=(1, 4))
    assert read_graph(load_model(model_of([helper.make_node(op, ["x", "w"], ["y"])], constants=[values]))).outputs


def test_scales_of_groups_that_are_no_numbers_are_refused():
    b = Builder()
    codes = b.quantize(b.input(1, 40))
    packed = b.constant(np.zeros((6, 20)), np.uint8)
    scale = np.ones((6, 3), np.float32)
    scale[2, 1] = np.inf
    sizes = b.constant([6, 40], np.int64), b.constant(scale), b.constant(16, np.int64)
    weight = b.node("Transpose", b.node("DequantizeInt4", packed, *sizes, domain="subbyte"))
    with pytest.raises(ModelError, match="1 of its 18 elements are NaN or infinite"):
        read_graph(load_model(b.model(b.node("MatMul", codes, weight))))


# ---- low-bit payloads ----


def payload(model):
    decoder = next(node for node in model.graph.node if node.op_type == "DecodeTernary")
    return next(tensor for tensor in model.graph.initializer if tensor.name == decoder.input[0])


def test_a_payload_of_the_wrong_length_is_refused():
    model = cnn()
    tensor = payload(model)
    array = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[:, :-1]), tensor.name))
    with pytest.raises(
        ModelError, match=r"uint8 \(8, 17\), expected uint8 \(8, 18\) of ternary codes in shape \(8, 8, 3, 3\)"
    ):
        read_graph(load_model(model))


def test_an_impossible_code_is_refused():
    model = cnn()
    tensor = payload(model)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0] = 0xFF
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    with pytest.raises(ModelError, match="code 3 has no level"):
        read_graph(load_model(model))


def test_a_layer_that_could_overflow_is_refused():
    b = Builder()
    x = b.input(1, 2000)
    model = b.model(b.linear(b.quantize(x), "pow2_5n", 2, 2000))
    with pytest.raises(CompileError, match="beyond int32"):
        lower_graph(model)


# ---- normalising ----


def test_functions_of_others_are_inlined():
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]
    function = helper.make_function("acme", "Square", ["a"], ["c"], body, opsets[:1])
    model = model_of([helper.make_node("Square", ["x"], ["y"], domain="acme")], opsets=opsets)
    model.functions.append(function)
    assert [node.op_type for node in load_model(model).graph.node] == ["Mul", "Relu"]


def test_our_functions_are_kept():
    kept = {node.op_type for node in load_model(cnn()).graph.node if node.domain == "subbyte"}
    assert kept == {"Quantize", "DecodeInt8", "DecodeTernary", "DecodeInt4"}


def test_an_old_opset_is_brought_up_to_date():
    squeeze = helper.make_node("Squeeze", ["x"], ["y"], axes=[0])
    model = model_of([squeeze], rank=1, opsets=[helper.make_opsetid("", 11)])
    assert read_graph(load_model(model)).values["y"].shape == (4,)


def test_shape_arithmetic_is_folded():
    b = Builder()
    x = b.input(2, 3, 4)
    shape = b.node("Shape", x)
    first = b.node("Gather", shape, b.constant([0], np.int64), axis=0)
    wanted = b.node("Concat", first, b.constant([-1], np.int64), axis=0)
    graph = read_graph(load_model(b.model(b.node("Relu", b.node("Reshape", x, wanted)))))
    assert [node.op for node in graph.order()] == ["Reshape", "Relu"]
    assert graph.values[graph.outputs[0]].shape == (2, 12)
