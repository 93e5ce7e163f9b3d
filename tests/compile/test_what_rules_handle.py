"""A rule states which dtypes, attributes and outputs it handles; the matcher declines every other node by reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as helper
import onnx.numpy_helper
import onnx.reference
import pytest
from onnx import TensorProto
from run_plan import onnxruntime_outputs, run_plan

from subbyte.errors import CompileError, ModelError
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.lowering import lower, lower_graph, stages
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.read_graph import read_graph
from subbyte.tvm_kernels.rewrites.pattern import EVERY, Any, Op, apply, other_than_default, rule


def one_node(op, inputs, outputs, constants=None, opset=21, **attributes):
    """A model of one node; inputs and outputs are {name: (element type, shape)}."""

    def infos(sides):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in sides.items()]

    made = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()]
    node = helper.make_node(op, [*inputs, *(constants or {})], list(outputs), "node", **attributes)
    graph = helper.make_graph([node], "one_node", infos(inputs), infos(outputs), made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def small_graph(dtype="float32", outputs=("y",), **attributes):
    graph = Graph("small", 21)
    graph.add_value("x", dtype, (2, 4))
    for name in outputs:
        graph.add_value(name, dtype, (2, 4))
    node = graph.add(Node("LeakyRelu", ["x"], list(outputs), attributes, "node"))
    graph.inputs, graph.outputs = ["x"], list(outputs)
    return graph, node


def taken(graph, node, x):
    graph.replace_node(node, Node("Taken", [x], node.outputs, {}, node.name))
    return True


@pytest.mark.parametrize(
    ("made", "states", "reason"),
    [
        ({}, {}, ""),
        ({"dtype": "float64"}, {}, "'x' is float64; handled: float32"),
        ({"dtype": "float64"}, {"dtypes": ("float64",)}, ""),
        ({"dtype": "int8"}, {"dtypes": EVERY}, ""),
        ({"alpha": 0.5}, {}, "its attribute alpha is 0.5; handled: its default"),
        ({"alpha": 0.5}, {"attributes": ("alpha",)}, ""),
        ({"alpha": 0.009999999776482582}, {}, ""),  # the default of the schema, written out
        ({"unheard_of": 1}, {"attributes": ("alpha",)}, "its attribute unheard_of is 1; handled: its default"),
        ({"unheard_of": 1}, {"attributes": EVERY}, ""),
        ({"outputs": ("y", "z")}, {}, "its output 'z' is used; handled: the first 1"),
        ({"outputs": ("y", "z")}, {"outputs": 2}, ""),
        ({"outputs": ("y", "")}, {}, ""),
    ],
)
def test_the_matcher_declines_what_a_rule_does_not_state(made, states, reason):
    outputs = [name for name in made.get("outputs", ("y",)) if name]
    graph, node = small_graph(**{**made, "outputs": outputs})
    applied = apply(graph, [rule("toy", Op("LeakyRelu", Any("x"), **states), to=taken)])
    assert applied == ([] if reason else ["toy"])
    assert node.declined == ({"toy": reason} if reason else {})


@pytest.mark.parametrize(
    ("attributes", "others"),
    [
        ({"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}, []),
        ({"strides": [1, 2], "pads": [0, 0, 0, 0]}, ["strides"]),
        ({"strides": [1, 1], "pads": [0, 0, 0, 1]}, ["pads"]),
        ({"dilations": [2, 1], "kernel_shape": [1, 1]}, ["dilations", "kernel_shape"]),
    ],
)
def test_defaults_that_onnx_states_in_words_alone(attributes, others):
    graph, node = small_graph()
    node.op, node.attributes = "LpPool", attributes
    assert sorted(other_than_default(graph, node)) == sorted(others)


def test_a_rewrite_declines_with_its_reason():
    graph, node = small_graph()
    assert apply(graph, [rule("toy", Op("LeakyRelu", Any("x")), to=lambda graph, node, x: "not today")]) == []
    assert node.declined == {"toy": "not today"}


@pytest.mark.parametrize("outcome", [False, "", 0, np.False_])
def test_a_rewrite_does_not_decline_without_a_reason(outcome):
    graph, _ = small_graph()
    with pytest.raises(TypeError, match=r"rule 'toy' returned .*: return True, the reason of a decline, or None"):
        apply(graph, [rule("toy", Op("LeakyRelu", Any("x")), to=lambda graph, node, x: outcome)])


def test_a_pattern_looks_at_every_node_of_it():
    graph, _ = small_graph(alpha=0.5)
    graph.add_value("z", "float32", (2, 4))
    graph.add(Node("Relu", ["y"], ["z"], {}, "relu"))
    graph.outputs = ["z"]
    fused = rule("toy", Op("Relu", Op("LeakyRelu", Any("x"))), to=taken)
    stated = rule("toy", Op("Relu", Op("LeakyRelu", Any("x"), attributes=("alpha",))), to=taken)
    assert apply(graph, [fused]) == []
    assert apply(graph, [stated]) == ["toy"]


IMAGE = [1, 3, 6, 6]


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT8])
def test_max_pool_of_bytes_is_no_pool_of_floats(kind):
    """The float kernel wrote four bytes for each of one."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    model = one_node("MaxPool", {"x": (kind, IMAGE)}, {"y": (kind, [1, 3, 3, 3])}, kernel_shape=[2, 2], strides=[2, 2])
    graph = lower_graph(model)
    assert [node.op for node in graph.order()] == ["MaxPool"]
    (node,) = graph.order()
    assert node.declined == {"max pool": f"'x' is {dtype}; handled: float32"}
    inputs = {"x": np.random.default_rng(0).integers(*((0, 256) if dtype == "uint8" else (-128, 128)), IMAGE, dtype)}
    plan = lower(model, host_features())
    assert plan.calls[0].passed_over == (("max pool", f"'x' is {dtype}; handled: float32"),)
    assert np.array_equal(run_plan(plan, inputs)[0]["y"], onnxruntime_outputs(model, inputs)["y"])


@pytest.mark.parametrize("kind", ["float64", "int32"])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [("Softmax", {}), ("GlobalAveragePool", {}), ("ReduceMean", {"keepdims": 1}), ("LayerNormalization", {})],
)
def test_other_dtypes_get_no_float32_kernel(kind, op, attributes):
    """The values of a graph between Casts have any dtype; every float kernel takes float32 alone."""
    graph = Graph("small", 21)
    graph.add_value("x", kind, (1, 4, 6, 6))
    graph.add_value("y", kind, (1, 4, 1, 1) if op in ("GlobalAveragePool", "ReduceMean") else (1, 4, 6, 6))
    inputs = {
        "ReduceMean": ["x", graph.constant(np.array([2, 3]))],
        "LayerNormalization": ["x", graph.constant(np.ones(6, kind)), graph.constant(np.zeros(6, kind))],
    }
    node = graph.add(Node(op, inputs.get(op, ["x"]), ["y"], attributes, "node"))
    graph.inputs, graph.outputs = ["x"], ["y"]
    for _, rules in stages():
        apply(graph, rules)
    assert graph.order() == [node]
    assert set(node.declined.values()) == {f"'x' is {kind}; handled: {states(op)}"}


def states(op):
    return "codes, float32" if op == "ReduceMean" else "float32"


def test_mean_and_deviation_of_a_layer_norm_stay_with_the_node():
    sides = {"y": (1, [2, 8]), "mean": (1, [2, 1]), "inv": (1, [2, 1])}
    weights = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    model = one_node("LayerNormalization", {"x": (1, [2, 8])}, sides, weights)
    (node,) = lower_graph(model).order()
    assert node.declined == {"layer norm": "its output 'mean' is used; handled: the first 1"}


def test_training_mode_is_no_batch_norm_of_inference():
    weights = {name: np.ones(3, np.float32) for name in ("scale", "bias", "mean", "variance")}
    sides = {"y": (1, IMAGE), "running_mean": (1, [3]), "running_variance": (1, [3])}
    model = one_node("BatchNormalization", {"x": (1, IMAGE)}, sides, weights, training_mode=1)
    (node,) = lower_graph(model).order()
    assert node.declined == {"batch norm": "its attribute training_mode is 1; handled: its default"}


@pytest.mark.parametrize(
    ("op", "inputs", "wrong"),
    [
        ("Clip", {"low": (5, 3)}, r"lower bound has shape \[5, 3\], expected a scalar"),
        ("Clip", {"": (), "high": (3,)}, r"upper bound has shape \[3\], expected a scalar"),
        ("Clip", {"low": (), "high": (1,)}, ""),
        ("ScatterND", {"indices": (2, 1), "updates": (2, 1)}, r"updates have shape \[2, 1\], expected \[2, 3\]"),
        ("ScatterND", {"indices": (2, 1), "updates": (2, 3)}, ""),
        ("ScatterND", {"indices": (4, 2), "updates": (4,)}, ""),
        (
            "ScatterElements",
            {"indices": (2, 1), "updates": (2, 2)},
            r"updates have shape \[2, 2\], expected",
        ),
        ("ScatterElements", {"indices": (2,), "updates": (2,)}, "indices have 1 axes, expected those of its data, 2"),
        (
            "ScatterElements",
            {"indices": (2, 4), "updates": (2, 4)},
            r"of shape \[2, 4\] exceed .* along axis 1",
        ),
        ("ScatterElements", {"indices": (9, 3), "updates": (9, 3)}, ""),
        (
            "GatherElements",
            {"indices": (5, 4)},
            r"\[5, 4\] exceed its data of shape \[5, 3\] along axis 1",
        ),
        ("GatherElements", {"indices": (5, 3)}, ""),
    ],
)
def test_shapes_that_onnx_states_in_words_alone(op, inputs, wrong):
    kinds = {"indices": TensorProto.INT64}
    given = {name: (kinds.get(name, TensorProto.FLOAT), shape) for name, shape in inputs.items()}
    shape = given["indices"][1] if op == "GatherElements" else (5, 3)
    model = one_node(op, {"x": (TensorProto.FLOAT, (5, 3)), **given}, {"y": (TensorProto.FLOAT, shape)})
    for value in [value for value in model.graph.input if not value.name]:
        model.graph.input.remove(value)
    if wrong:
        with pytest.raises(ModelError, match=rf"'node' \({op}\) does not fit its inputs: .*{wrong}"):
            lower_graph(model)
    else:
        lower_graph(model)


@pytest.mark.parametrize(
    ("op", "attributes", "refused"),
    [
        ("MaxPool", {"kernel_shape": [2, 1], "pads": [1, 1, 1, 0]}, True),
        ("MaxPool", {"kernel_shape": [1, 1], "pads": [0, 0, 2, 0]}, True),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [5, 1], "pads": [2, 0, 2, 0]}, True),  # reads at -2 and 3
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [3, 0, 0, 0]}, True),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [3, 0, 0, 0], "count_include_pad": 1}, False),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}, False),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [2, 0, 2, 0]}, False),
        ("MaxPool", {"kernel_shape": [1, 1], "pads": [0, 0, 1, 1], "strides": [5, 5]}, False),
    ],
)
def test_a_window_of_padding_alone_is_refused(op, attributes, refused):
    model = one_node(op, {"x": (TensorProto.FLOAT, (1, 1, 3, 3))}, {"y": (TensorProto.FLOAT, None)}, **attributes)
    if refused:
        with pytest.raises(ModelError, match=r"give a window of padding alone, expected pads smaller than the window"):
            read_graph(model)
    else:
        read_graph(model)


WINDOWS = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("op", "data", "indices", "attributes", "wrong"),
    [
        ("GatherND", (5, 3), (4, 1), {"batch_dims": 1}, r"first 1 axes are \[5\] of its data, \[4\] of its indices"),
        ("GatherND", (5, 3), (5,), {"batch_dims": 1}, "batch_dims is 1, expected less than the axes"),
        (
            "MaxUnpool",
            (1, 1, 2, 2),
            (1, 1, 2, 1),
            WINDOWS,
            r"indices have shape \[1, 1, 2, 1\], expected",
        ),
    ],
)
def test_indices_lie_beside_the_data(op, data, indices, attributes, wrong):
    sides = {"x": (TensorProto.FLOAT, data), "i": (TensorProto.INT64, indices)}
    model = one_node(op, sides, {"y": (TensorProto.FLOAT, None)}, **attributes)
    with pytest.raises(ModelError, match=rf"'node' \({op}\) does not fit its inputs: .*{wrong}"):
        read_graph(model)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "reason"),
    [
        ("Gemm", ([4, 5], [5, 3], [3]), {"alpha": 2.0, "beta": -1.0}, ""),
        ("Gemm", ([4, 5], [5, 3], [3]), {"alpha": 0.5}, r"its alpha is 0\.5, of integers; handled: whole numbers"),
        ("Gemm", ([4, 5], [5, 3], [3]), {"beta": 0.01}, r"its beta is 0\.01, of integers; handled: whole numbers"),
        ("Shrink", ([4, 5],), {}, ""),
        ("Shrink", ([4, 5],), {"bias": 2.0, "lambd": 1.5}, ""),
        ("Shrink", ([4, 5],), {"bias": 0.5}, r"its bias is 0\.5, its lambd 0\.5, of integers"),
        ("Shrink", ([4, 5],), {"lambd": -1.5}, r"its bias is 0, its lambd -1\.5, of integers"),
    ],
)
def test_factors_of_integers_are_whole(op, inputs, attributes, reason):
    """TVM would make integers of them first; NumPy and onnxruntime make integers of the result."""
    sides = {f"x{i}": (TensorProto.INT32, shape) for i, shape in enumerate(inputs)}
    output = [inputs[0][0], inputs[1][1]] if op == "Gemm" else inputs[0]
    model = one_node(op, sides, {"y": (TensorProto.INT32, output)}, **attributes)
    if reason:
        with pytest.raises(CompileError, match=rf"'node' \({op}\): {reason}"):
            lower(model, host_features())
        return
    rng = np.random.default_rng(3)
    feeds = {name: rng.integers(-9, 9, shape).astype(np.int32) for name, (_, shape) in sides.items()}
    (wanted,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_array_equal(run_plan(lower(model, host_features()), feeds)[0]["y"], wanted)


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.UINT8])
def test_integers_are_not_interpolated_in_another_way_than_elsewhere(kind):
    image = {"x": (kind, [1, 1, 4, 4]), "grid": (TensorProto.FLOAT, [1, 3, 3, 2])}
    for mode in ("linear", "cubic"):
        with pytest.raises(CompileError, match=r"\(GridSample\): it interpolates u?int\d+; handled: float32"):
            lower(one_node("GridSample", image, {"y": (kind, [1, 1, 3, 3])}, mode=mode), host_features())
    nearest = one_node("GridSample", image, {"y": (kind, [1, 1, 3, 3])}, mode="nearest")
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 100, (1, 1, 4, 4)).astype(helper.tensor_dtype_to_np_dtype(kind))
    feeds = {"x": pixels, "grid": rng.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)}
    (wanted,) = onnx.reference.ReferenceEvaluator(nearest).run(None, feeds)
    np.testing.assert_array_equal(run_plan(lower(nearest, host_features()), feeds)[0]["y"], wanted)
    scales = {"roi": np.zeros(0, np.float32), "scales": np.float32([1, 1, 2, 2])}
    cubic = one_node("Resize", {"x": (kind, [1, 1, 4, 4])}, {"y": (kind, [1, 1, 8, 8])}, scales, mode="cubic")
    with pytest.raises(CompileError, match=r"\(Resize\): it is cubic, of u?int\d+; handled: float32, float64"):
        lower(cubic, host_features())


def test_a_type_without_a_sign_does_not_shrink():
    model = one_node("Shrink", {"x": (TensorProto.UINT8, [4])}, {"y": (TensorProto.UINT8, [4])})
    with pytest.raises(CompileError, match=r"\(Shrink\): 'x' is uint8; handled: signed types"):
        lower(model, host_features())


AXES = np.array([2, 3])


def test_the_mean_of_integers_is_refused():
    """TVM's is of another type."""
    model = one_node(
        "ReduceMean", {"x": (TensorProto.INT32, IMAGE)}, {"y": (TensorProto.INT32, [1, 3, 1, 1])}, {"a": AXES}
    )
    with pytest.raises(CompileError, match=r"'node' \(ReduceMean\): 'x' is int32; handled: float32, float64"):
        lower(model, host_features())


def between_casts(kind, nodes, **constants):
    """x to a type, through nodes from 'narrow' to 'made', and back to float32."""
    opset = 23 if helper.tensor_dtype_to_string(kind) == "TensorProto.FLOAT4E2M1" else 21
    there = helper.make_node("Cast", ["x"], ["narrow"], "narrow", to=kind)
    back = helper.make_node("Cast", ["made"], ["y"], "widen", to=TensorProto.FLOAT)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    made = [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph([there, *nodes, back], "between_casts", infos[:1], infos[1:], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


ROUNDED = ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1")
ROUNDED_BETWEEN = [(kind, op) for kind in ROUNDED if hasattr(TensorProto, kind) for op in ("Identity", "Reshape")]


@pytest.mark.parametrize(("kind", "op"), [*ROUNDED_BETWEEN, ("BFLOAT16", "Add")])
def test_floats_that_tvm_does_not_round_are_refused(kind, op):
    """To bfloat16 and back, x kept its digits."""
    shape = {"shape": np.array([2, 8])} if op == "Reshape" else {}
    inputs = {"Identity": ["narrow"], "Add": ["narrow", "narrow"], "Reshape": ["narrow", "shape"]}[op]
    model = between_casts(getattr(TensorProto, kind), [helper.make_node(op, inputs, ["made"])], **shape)
    name = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind)).name
    with pytest.raises(CompileError, match=rf"'narrow' \(Cast\): 'narrow' is {name} at run time.*Cast to float32"):
        lower(model, host_features())


def test_codes_dequantized_to_bfloat16_are_refused():
    scale = helper.make_tensor("scale", TensorProto.BFLOAT16, [], [0.3])
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale"], ["made"], "codes"),
        helper.make_node("Cast", ["made"], ["y"], "widen", to=TensorProto.FLOAT),
    ]
    infos = [helper.make_tensor_value_info(n, kind, [2, 8]) for n, kind in (("x", TensorProto.INT8), ("y", 1))]
    graph = helper.make_graph(nodes, "codes", infos[:1], infos[1:], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(CompileError, match=r"'made' is bfloat16 at run time.*Cast to float32"):
        lower(model, host_features())


def test_constants_of_bfloat16_are_rounded():
    values = np.linspace(-3, 3, 8, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["rounded"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["rounded"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "wide"], ["y"], "node"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "constants", infos[:1], infos[1:], [onnx.numpy_helper.from_array(values, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    bits = values.view(np.uint32).astype(np.uint64)
    kept = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)  # nearest, ties to even
    assert (kept != values).any()
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    np.testing.assert_array_equal(run_plan(lower(model, host_features()), {"x": x})[0]["y"], x * kept)
