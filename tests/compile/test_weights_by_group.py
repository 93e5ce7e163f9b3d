"""Weights with a scale for each group inside of convolution windows: integer kernels, compared with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
import torch
from hand_graphs import Builder
from run_plan import onnxruntime_outputs, random_inputs, run_plan

from subbyte import formats
from subbyte.errors import CompileError, ModelError
from subbyte.export import export
from subbyte.formats import LowBitTensor, PerGroup
from subbyte.models.quant import get_scheme, quantize
from subbyte.models.zoo import create_for_scheme
from subbyte.runtime.session import load
from subbyte.tvm_kernels.compiler import compile
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators.unfold import unfolded_weight

HOST = host_features()


def grouped_weight(b: Builder, fmt: str, size: int, *shape: int) -> str:
    """A Dequantize<Format> of random levels with scales for each `size` elements of a row."""
    found = formats.get(fmt)
    depth = int(np.prod(shape[1:]))
    packed = b.constant(
        formats.pack(found.encode(b.rng.choice(found.levels.values, (shape[0], depth))), found.code_bits), np.uint8
    )
    scale = b.uniform(shape[0], -(-depth // size), low=0.005, high=0.05)
    name = "Dequantize" + fmt.capitalize()
    return b.node(name, packed, b.constant(shape, np.int64), scale, b.constant(size, np.int64), domain="subbyte")


def conv_model(image: tuple[int, ...], fmt: str, size: int, weight: tuple[int, ...], **attributes: Any) -> Any:
    """Two quantized layers: codes stay codes from the first to the second, whose scales are by group."""
    b = Builder()
    x = b.input(*image)
    channels = image[1]
    one = [1] * (len(image) - 2)
    first = b.node("Relu", b.conv(b.quantize(x), "int8", channels, channels, *one))
    codes = b.quantize(first, 16.0, 0, 255)
    y = b.node("Mul", b.node("Conv", codes, grouped_weight(b, fmt, size, *weight), **attributes), b.constant(1 / 16))
    y = b.node("Relu", b.node("Add", y, b.uniform(1, weight[0], *one)))
    return b.model(y)


PADS = {"pads": [1, 1, 1, 1]}
MODELS = {
    "groups across channels": ((1, 16, 6, 7), "int4", 32, (10, 16, 3, 3), PADS),
    "a last group that is shorter": ((2, 6, 5, 6), "int4", 20, (9, 6, 3, 3), PADS),
    "groups of one byte's lanes not": ((1, 5, 6, 5), "ternary", 7, (9, 5, 3, 3), PADS),
    "whole windows of channels": ((1, 8, 5, 5), "int4", 36, (12, 8, 3, 3), PADS),
    "stride, dilation, uneven padding": (
        (1, 8, 11, 9),
        "int4",
        16,
        (20, 8, 3, 2),
        {"pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    ),
    "groups of channels": ((1, 12, 6, 7), "int4", 12, (20, 6, 3, 3), {"group": 2, **PADS}),
    "one dimension": ((1, 7, 30), "pow2_4", 8, (12, 7, 5), {"pads": [2, 2]}),
    "pointwise": ((1, 24, 4, 5), "int4", 8, (10, 24, 1, 1), {}),
    "depthwise": ((1, 6, 7, 6), "int4", 4, (6, 1, 3, 3), {"group": 6, **PADS}),
    "signs of weights": ((1, 8, 5, 6), "binary", 24, (8, 8, 3, 3), PADS),
}


def operators(model: Any) -> tuple[Any, list[Any]]:
    """The lowered graph and its kernels, moves of axes left out."""
    graph = lower_graph(model, HOST, strict=True)
    return graph, [node for node in graph.order() if node.operator is not None and node.op != "Permute"]


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())
def test_the_reference_and_the_kernels_agree_with_onnxruntime(case: Any) -> None:
    image, fmt, size, weight, attributes = case
    model = conv_model(image, fmt, size, weight, **attributes)
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    graph, kernels = operators(model)
    assert "FloatProduct" not in [node.op for node in kernels]
    assert [n.operator.right.granularity for n in kernels if n.op == "QuantizedProduct"][1] == PerGroup(size)
    close = {"rtol": 1e-5, "atol": 1e-5 * float(np.abs(wanted).max())}
    expected = next(iter(interpret(graph, inputs).values()))
    np.testing.assert_allclose(expected, wanted, **close)
    for features in (HOST, frozenset[str]()):
        got = next(iter(run_plan(lower(model, features, strict=True), inputs)[0].values()))
        assert np.array_equal(got, expected)


def test_groups_are_added_up_by_the_kernel_that_the_target_prefers() -> None:
    image, fmt, size, weight, attributes = MODELS["groups across channels"]
    plan = lower(conv_model(image, fmt, size, weight, **attributes), HOST | {"avx2"}, strict=True)
    unfold, product = [call for call in plan.calls if call.kind != "Permute"][-2:]
    assert (unfold.kind, product.kind) == ("Unfold", "QuantizedProduct")
    assert unfold.name == f"{product.name}:rows"
    assert product.kernel.startswith("dot-")
    assert product.macs == 10 * 16 * 9 * 6 * 7
    assert product.weights == "int4"


@pytest.mark.parametrize("size", [54, 128])
def test_one_group_for_a_whole_row_is_a_scale_behind_the_sum(size: int) -> None:
    _, kernels = operators(conv_model((1, 6, 5, 6), "int4", size, (9, 6, 3, 3), **PADS))
    assert [node.op for node in kernels if node.op in ("Unfold", "QuantizedProduct")] == ["QuantizedProduct"] * 2
    product = kernels[-1].operator
    assert not isinstance(product.right.granularity, PerGroup)
    assert [type(step).__name__ for step in product.epilogue.steps] == ["Scale", "Scale", "Bias", "Activate"]


def test_lines_keep_every_element_in_its_group() -> None:
    """Group by group: the sums over unfolded elements are those over the elements of the file."""
    rng = np.random.default_rng(0)
    levels = rng.integers(-7, 8, (4, 5, 3, 2))
    tensor = LowBitTensor.from_levels(formats.get("int4"), levels, rng.random((4, 5)), PerGroup(7))
    found = unfolded_weight(tensor)
    assert found is not None
    order, lines = found
    window = rng.integers(0, 256, (5, 3, 2))  # channels first, as in the file
    line = window.transpose(1, 2, 0).reshape(-1)[order]
    assert sorted(order) == list(range(30))
    for first in range(0, 30, 7):
        part = slice(first, first + 7)
        wanted = (levels.reshape(4, 30)[:, part] * window.reshape(30)[part]).sum(axis=1)
        assert np.array_equal((lines.levels().reshape(4, 30)[:, part] * line[part]).sum(axis=1), wanted)


def test_signs_by_group_run_on_integers() -> None:
    b = Builder()
    x = b.input(1, 8, 6, 6)
    padded = b.node("Pad", b.binarize(x), b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), b.constant(1.0))
    model = b.model(b.node("Conv", padded, grouped_weight(b, "binary", 16, 8, 8, 3, 3)))
    graph, kernels = operators(model)
    assert "FloatProduct" not in [node.op for node in kernels]
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    np.testing.assert_allclose(next(iter(interpret(graph, inputs).values())), wanted, rtol=1e-5, atol=1e-5)


def blocked(zero_points: bool, block: int, kernel: tuple[int, int], matrix: bool = False) -> onnx.ModelProto:
    """A QDQ file whose int4 or uint4 weights have a scale for each block of input channels."""
    rng = np.random.default_rng(3)
    shape = (24, 10) if matrix else (10, 24, *kernel)
    axis = 0 if matrix else 1
    scales = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    low, kind = (0, onnx.TensorProto.UINT4) if zero_points else (-8, onnx.TensorProto.INT4)
    scale = rng.uniform(0.005, 0.05, scales).astype(np.float32)
    levels = rng.integers(low, low + 16, shape)
    tensors = [
        onnx.numpy_helper.from_array(np.float32(1 / 32), "step"),
        onnx.numpy_helper.from_array(np.uint8(121), "zero"),
        helper.make_tensor("w", kind, shape, levels.reshape(-1).tolist()),
        onnx.numpy_helper.from_array(scale, "scale"),
    ]
    inputs = ["w", "scale"]
    if zero_points:
        points = rng.integers(0, 16, scales)
        tensors.append(helper.make_tensor("points", kind, scales, points.reshape(-1).tolist()))
        inputs.append("points")
    pads = [kernel[0] // 2, kernel[1] // 2] * 2
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", inputs, ["b"], axis=axis, block_size=block),
        helper.make_node("MatMul", ["a", "b"], ["y"])
        if matrix
        else helper.make_node("Conv", ["a", "b"], ["y"], pads=pads),
    ]
    image, out = ((5, 24), (5, 10)) if matrix else ((1, 24, 5, 6), (1, 10, 5, 6))
    float32 = onnx.TensorProto.FLOAT
    infos = [helper.make_tensor_value_info(name, float32, dims) for name, dims in (("x", image), ("y", out))]
    graph = helper.make_graph(nodes, "blocked", [infos[0]], [infos[1]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("kernel", "matrix"), [((3, 3), False), ((1, 1), False), ((1, 1), True)])
def test_blocks_along_the_channels_of_each_place_need_no_unfolding(
    kernel: Any, matrix: bool, zero_points: bool
) -> None:
    model = blocked(zero_points, 8, kernel, matrix)
    inputs = random_inputs(model)
    graph, kernels = operators(model)
    assert "Unfold" not in [node.op for node in kernels]
    product = next(node.operator for node in kernels if node.op == "QuantizedProduct")
    assert (product.right.format.name, product.right.granularity) == ("int5" if zero_points else "int4", PerGroup(8))
    wanted = onnxruntime_outputs(model, inputs)["y"]
    expected = interpret(graph, inputs)["y"]
    np.testing.assert_allclose(expected, wanted, rtol=1e-5, atol=1e-4)
    for features in (HOST, frozenset[str]()):
        assert np.array_equal(run_plan(lower(model, features, strict=True), inputs)[0]["y"], expected)


def test_blocks_that_do_not_end_with_a_place_run_in_float_and_say_so() -> None:
    model = blocked(False, 9, (3, 3))
    inputs = random_inputs(model)
    with pytest.raises(CompileError, match="blocks of 9 along axis 1 are not groups of the input channels"):
        lower(model, HOST, strict=True)
    got = run_plan(lower(model, HOST), inputs)[0]["y"]
    np.testing.assert_allclose(got, onnxruntime_outputs(model, inputs)["y"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("replaced", ["scale", "points"])
def test_blocks_that_do_not_fit_the_weights_are_refused(replaced: str) -> None:
    model = blocked(True, 8, (3, 3))
    index = next(i for i, tensor in enumerate(model.graph.initializer) if tensor.name == replaced)
    wrong = onnx.helper.make_tensor(replaced, model.graph.initializer[index].data_type, (10, 2, 3, 3), [1] * 180)
    model.graph.initializer[index].CopyFrom(wrong)
    with pytest.raises(ModelError, match=r"do not fit blocks of 8 along axis 1 of \[10, 24, 3, 3\]"):
        lower_graph(model)


def test_a_bundle_of_convolutions_by_group_is_strict(tmp_path: Path) -> None:
    image, fmt, size, weight, attributes = MODELS["groups across channels"]
    model = conv_model(image, fmt, size, weight, **attributes)
    report = compile(model, tmp_path / "g.subbyte", strict=True)
    inputs = random_inputs(model)
    wanted = next(iter(onnxruntime_outputs(model, inputs).values()))
    with load(tmp_path / "g.subbyte") as session:
        got = session.run(inputs)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)
    assert [row.weights for row in report.rows if row.kind == "QuantizedProduct"] == ["int8", "int4"]


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_exports_by_group_compile_with_strict(name: str, tmp_path: Path) -> None:
    """resnet8: groups across channels, with strides; ds_cnn: one group for a depthwise row, several for a pointwise."""
    torch.manual_seed(0)
    scheme = get_scheme("int4", group_size=32)
    model = create_for_scheme(name, "int4", channels=1, size=12)
    x = torch.randn(8, 1, 12, 12)
    quantize(model, scheme, x[:1])
    model(x)
    export(model.eval(), tmp_path / "m.onnx", example=x[:1], check=False)
    file = onnx.load(tmp_path / "m.onnx")
    assert "DequantizeInt4" in {node.op_type for node in file.graph.node}
    report = compile(tmp_path / "m.onnx", tmp_path / "m.subbyte", strict=True)
    assert {row.weights for row in report.rows} == {"int4", "int8", "-"}
    inputs = random_inputs(file)
    wanted = onnxruntime_outputs(file, inputs)["logits"]
    with load(tmp_path / "m.subbyte") as session:
        got = session.run(inputs)
    # Sums of products in float: a quantizer may round a tie the other way, and that is one step further on.
    assert np.abs(got - wanted).max() <= 0.05 * np.abs(wanted).max()
