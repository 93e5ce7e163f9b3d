"""What no kernel took: ONNX nodes through TVM give onnxruntime's numbers, in plans that allocate nothing."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as helper
import onnx.parser
import pytest
from hand_graphs import Builder
from run_plan import onnxruntime_outputs, random_inputs, run_plan
from this_machine import needs_newer_onnxruntime

from subbyte.errors import CompileError
from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.relax_converters import CONVERTERS, converter

HOST = host_features()


def compare(model, tolerance=1e-5):
    inputs = random_inputs(model)
    plan = lower(model, HOST)
    outputs, _ = run_plan(plan, inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():
        assert outputs[name].dtype == wanted.dtype
        np.testing.assert_allclose(outputs[name], wanted, rtol=tolerance, atol=tolerance)
    return plan


def for_now(monkeypatch, op):
    """`converter`, until the end of the test."""
    monkeypatch.setitem(CONVERTERS, ("", op), None)  # so that it is as before afterwards
    del CONVERTERS["", op]
    return converter("", op)


def test_a_chain_of_leftovers_is_one_call():
    b = Builder()
    x = b.input(4, 24)
    y = b.node("Sin", b.node("Exp", b.node("Elu", x)))
    plan = compare(b.model(y))
    assert [call.kind for call in plan.calls] == ["relax"]
    assert plan.arena_bytes == 0


def test_several_stages_in_one_function_and_views_between():
    b = Builder()
    x = b.input(1, 6, 5, 5)
    y = b.node("Reshape", b.node("Sin", x), b.constant([1, 2, -1], np.int64))
    y = b.node("InstanceNormalization", y, b.uniform(2), b.uniform(2))
    compare(b.model(b.node("Reshape", y, b.constant([1, 6, 5, 5], np.int64))))


def test_data_movement():
    b = Builder()
    x = b.input(2, 8, 6)
    moved = b.node("Transpose", x, perm=[2, 0, 1])
    picked = b.node("Gather", x, b.constant([5, 0, 3], np.int64), axis=2)
    first, second = b.node("Split", x, b.constant([3, 5], np.int64), outputs=2, axis=1)
    tiled = b.node("Concat", first, second, first, axis=1)
    edge = b.node("Pad", x, b.constant([0, 0, 1, 0, 0, 2], np.int64), mode="edge")
    compare(b.model(moved, picked, tiled, edge), 0)


def test_parts_of_one_tensor_are_read_in_place():
    b = Builder()
    x = b.input(16, 48)
    q = b.node("Transpose", b.node("Reshape", b.node("Exp", x), b.constant([16, 3, 16], np.int64)), perm=[1, 0, 2])
    parts = [b.node("Gather", q, b.constant(i, np.int64), axis=0) for i in range(3)]
    scores = b.node("MatMul", parts[0], b.node("Transpose", parts[1], perm=[1, 0]))
    plan = compare(b.model(b.node("MatMul", b.node("Softmax", scores), parts[2])), 1e-4)
    assert len([call for call in plan.calls if call.kind == "relax"]) <= 2


@pytest.mark.parametrize(("start", "end", "kept"), [(-5, 2, 2), (-(2**63), -1, 3), (1, 2**63 - 1, 3), (-3, 9, 3)])
def test_a_slice_may_begin_before_the_first_element(start, end, kept):
    """ONNX clamps its bounds: -5 of 4 rows is the first one, not the bytes in front of it."""
    b = Builder()
    bounds = [b.constant([bound], np.int64) for bound in (start, end, 0)]
    plan = compare(b.model(b.node("Exp", b.node("Slice", b.node("Relu", b.input(4, 16)), *bounds))))
    assert plan.outputs[0].shape == (kept, 16)


def test_a_part_of_an_input_or_of_an_output_is_copied():
    b = Builder()
    x = b.input(4, 16)
    viewed = b.node("Reshape", x, b.constant([4, 4, 4], np.int64))
    y = b.node("Exp", x)
    one = b.node("Gather", viewed, b.constant(2, np.int64), axis=0)
    two = b.node("Gather", y, b.constant(3, np.int64), axis=0)
    compare(b.model(b.node("Relu", one), y, two))


def test_outputs_that_share_their_bytes_are_copied():
    b = Builder()
    y = b.node("Relu", b.input(2, 12))
    other = b.node("Reshape", y, b.constant([3, 8], np.int64))
    compare(b.model(y, other, b.node("Identity", y)), 0)


def test_integer_tensors():
    b = Builder()
    y = b.node("ArgMax", b.input(3, 7), axis=1, keepdims=0)
    compare(b.model(b.node("Cast", b.node("Add", y, b.constant(2, np.int64)), to=6)), 0)


@pytest.mark.parametrize("index", [2, [2]])
@pytest.mark.parametrize(
    ("op", "attributes"), [("ArgMax", {"axis": 2}), ("ReduceSum", {"keepdims": 1}), ("Hardmax", {}), ("Transpose", {})]
)
def test_a_scalar_constant_keeps_its_rank(index, op, attributes):
    b = Builder()
    picked = b.node("Gather", b.node("Sin", b.input(1, 6, 4, 5)), b.constant(index, np.int64), axis=2)
    axes = [b.constant([2], np.int64)] if op == "ReduceSum" else []
    compare(b.model(b.node(op, picked, *axes, **attributes)))


def test_what_tvm_makes_with_another_shape_is_refused_by_name(monkeypatch):
    from tvm import relax

    @for_now(monkeypatch, "Sin")
    def one_axis_too_many(builder, inputs, attributes):
        return relax.op.expand_dims(relax.op.sin(inputs[0]), 0)

    @for_now(monkeypatch, "Cos")
    def another_dtype(builder, inputs, attributes):
        return relax.op.astype(inputs[0], "int32")

    for op, made in (("Sin", r"float32 \[1, 2, 3\]"), ("Cos", r"int32 \[2, 3\]")):
        b = Builder()
        y = b.node("Abs", b.node(op, b.input(2, 3)))
        with pytest.raises(CompileError, match=rf"'n0\.{op}' \({op}\): TVM makes .* {made}, ONNX makes it float32"):
            lower(b.model(y), HOST)


def test_an_operator_that_tvm_lacks_is_expanded_by_its_schema():
    b = Builder()
    x = b.input(2, 10)
    compare(b.model(b.node("Celu", x, alpha=2.0)))


def test_mean_and_inverse_deviation_of_a_layer_norm_are_computed():
    b = Builder(5)
    x = b.input(2, 3, 8)
    outputs = b.node("LayerNormalization", x, b.uniform(3, 8), b.uniform(3, 8), outputs=3, axis=-2, epsilon=1e-3)
    compare(b.model(*outputs))


def test_an_attention_becomes_products_and_a_softmax_with_kernels():
    shapes = {"q": [2, 4, 5, 8], "k": [2, 2, 6, 8], "v": [2, 2, 6, 8], "y": [2, 4, 5, 8]}
    infos = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "attention", scale=0.3, softcap=2.0)
    graph = helper.make_graph([node], "attention", [infos[name] for name in "qkv"], [infos["y"]])
    plan = compare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    kernels = [call.kind for call in plan.calls if call.kind in ("BatchMatMul", "Softmax")]
    assert kernels == ["BatchMatMul", "Softmax", "BatchMatMul"]


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "reason"),
    [
        ("RoiAlign", (1, 2, 6, 6), ([[0.0, 0, 4, 4]], ("int64", [0])), {"mode": "max"}, "mode is max; handled: avg"),
        (
            "LpPool",
            (1, 2, 6, 6),
            (),
            {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]},
            "pads is .*; handled: its default",
        ),
        ("Resize", (1, 2, 6, 6), ((), [1, 1, 0.7, 0.7]), {}, "no whole sizes"),
        ("Resize", (1, 2, 6, 6), ((), [1, 2, 2, 2]), {"mode": "cubic"}, "from .* to .*; handled"),
        ("Resize", (1, 2, 6, 6), ((), [1, 1, 0.5, 0.5]), {"antialias": 1, "mode": "linear"}, "antialias is 1"),
    ],
)
def test_what_tvm_ignores_is_refused_by_name(op, shape, constants, attributes, reason):
    b = Builder()
    given = [b.constant(c[1], c[0]) if c and c[0] == "int64" else b.constant(c) for c in constants]
    with pytest.raises(CompileError, match=rf"'n0\.{op}' \({op}\): .*{reason}"):
        lower(b.model(b.node(op, b.input(*shape), *given, **attributes)), HOST)


def test_the_places_of_a_max_pool_are_refused_by_name():
    b = Builder()
    outputs = b.node("MaxPool", b.input(1, 2, 6, 6), outputs=2, kernel_shape=[2, 2])
    with pytest.raises(
        CompileError, match=rf"'n0.MaxPool' .*: its output '{outputs[1]}' is used; handled: the first 1"
    ):
        lower(b.model(*outputs), HOST)


def test_large_elementwise_work_is_shared_out_in_one_parallel_loop():
    b = Builder()
    plan = lower(b.model(b.node("Sin", b.input(64, 400))), HOST)
    text = plan.calls[0].function.script()
    assert text.count("T.parallel(") == 1
    assert "T.vectorized(16)" in text or "T.vectorized(T.int64(16))" in text


def test_an_operator_that_nothing_can_run_is_named():
    b = Builder()
    with pytest.raises(CompileError, match=r"'n0\.Det' \(Det\): neither a kernel nor TVM can run this operator"):
        lower(b.model(b.node("Det", b.input(4, 4))), HOST)


def test_a_converter_is_a_row_of_the_table(monkeypatch):
    from tvm import relax

    @for_now(monkeypatch, "Det")
    def wrong_but_ours(builder, inputs, attributes):
        return relax.op.sum(inputs[0])

    assert CONVERTERS["", "Det"] is wrong_but_ours
    b = Builder()
    model = b.model(b.node("Det", b.input(4, 4)))
    inputs = random_inputs(model)
    outputs, _ = run_plan(lower(model, HOST), inputs)
    np.testing.assert_allclose(next(iter(outputs.values())), inputs["x"].sum(), rtol=1e-5)


def test_packed_signs_are_unpacked_where_something_else_reads_them():
    b = Builder()
    signs = b.binarize(b.input(2, 37))
    plan = compare(b.model(b.linear(signs, "binary", 4, 37), signs), 0)
    assert {call.activation for call in plan.calls if call.kind == "QuantizedProduct"} == {"binary"}


def test_control_flow_is_refused():
    from subbyte.errors import ModelError

    b = Builder()
    x = b.input(2)
    body = helper.make_graph(
        [helper.make_node("Relu", [x], ["r"])], "then", [], [helper.make_tensor_value_info("r", 1, [2])]
    )
    condition = b.node("Cast", b.node("ReduceSum", x, keepdims=0), to=9)
    output = b.node("If", condition, then_branch=body, else_branch=body)
    infos = [helper.make_tensor_value_info(output, 1, [2])]
    graph = helper.make_graph(b.nodes, "g", b.inputs, infos, b.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ModelError, match="straight, deterministic graphs only"):
        lower(model, HOST)


@pytest.mark.parametrize("size", [3, 4, 16, 24])
@pytest.mark.parametrize("op", ["Sinh", "Cosh", "Tan", "Asin", "Acos", "Atan", "Asinh", "Atanh", "Erf"])
def test_functions_of_one_value_in_vectors_and_alone(op, size):
    b = Builder()
    compare(b.model(b.node(op, b.node("Mul", b.node("Tanh", b.input(2, size)), b.constant(0.9)))))


@needs_newer_onnxruntime
@pytest.mark.parametrize("op", ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceSum", "ReduceMax"])
def test_a_reduction_of_no_axes_is_of_each_element(op):
    b = Builder()
    compare(b.model(b.node(op, b.input(2, 5), noop_with_empty_axes=1)))


def test_reductions_and_places_of_rows_that_are_masked_throughout():
    """TVM's ReduceMax starts at the largest negative number, its ArgMax at -1."""
    b = Builder()
    x = b.input(4, 6)
    masked = b.node("Add", x, b.constant(np.where(np.arange(24).reshape(4, 6) < 9, -np.inf, 0)))
    axis = b.constant([1], np.int64)
    lowered = b.node("ReduceMax", masked, axis, keepdims=0)
    raised = b.node("ReduceMin", b.node("Neg", masked), axis, keepdims=1)
    places = [b.node("ArgMax", masked, axis=1, select_last_index=last) for last in (0, 1)]
    places.append(b.node("ArgMin", b.node("Neg", masked), axis=1, keepdims=0))
    compare(b.model(lowered, raised, *places))


def edge_case(op, attributes, a, b, bits):
    """In Python's whole numbers: shifts past the last bit, quotients without their fraction, 0 for a division by 0."""
    if op == "BitShift":
        b = b if 0 <= b < bits else 2 * bits
        return a << b if attributes["direction"] == "LEFT" else a >> b
    if b == 0:
        return 0
    quotient = a // b if op == "Mod" and not attributes else abs(a) // abs(b) * (1 if a * b >= 0 else -1)
    return quotient if op == "Div" else a - quotient * b


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Div", {}),
        ("Mod", {}),
        ("Mod", {"fmod": 1}),
        ("BitShift", {"direction": "LEFT"}),
        ("BitShift", {"direction": "RIGHT"}),
    ],
)
def test_integer_arithmetic_at_its_edges(op, attributes, dtype):
    """A division by 0 or of the smallest number by -1 ended the process; wide and negative shifts gave anything."""
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, info.min, 7, 5, info.max, 1, 0], dtype)
    y = np.array([-1 if info.min else 1, 1, 2, 0, 3, info.bits, info.bits - 1, 0], dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    infos = [helper.make_tensor_value_info(name, kind, [8]) for name in "xyz"]
    node = helper.make_node(op, ["x", "y"], ["z"], "node", **attributes)
    model = helper.make_model(
        helper.make_graph([node], "edges", infos[:2], infos[2:]),
        opset_imports=[helper.make_opsetid("", onnx.defs.onnx_opset_version())],  # signed shifts are young
    )
    exact = [edge_case(op, attributes, int(a), int(b), info.bits) for a, b in zip(x, y, strict=True)]
    wanted = np.array([value % (1 << info.bits) for value in exact], np.uint64).astype(np.dtype(f"uint{info.bits}"))
    outputs, _ = run_plan(lower(model, HOST), {"x": x, "y": y})
    assert np.array_equal(outputs["z"], wanted.view(dtype))


def test_the_remainder_of_floats_is_exact():
    values = np.array([0.0, 3, -3, 1e8, -1e8, 5.5, -5.5, 2], np.float32)
    by = np.array([2, np.inf, np.inf, 0.3, 0.3, -2, 2, -np.inf], np.float32)
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8]) for name in "xyz"]
    graph = helper.make_graph([helper.make_node("Mod", ["x", "y"], ["z"], "node")], "rest", infos[:2], infos[2:])
    newest = helper.make_opsetid("", onnx.defs.onnx_opset_version())  # below 28 `fmod` has to be 1
    outputs, _ = run_plan(lower(helper.make_model(graph, opset_imports=[newest]), HOST), {"x": values, "y": by})
    assert np.array_equal(outputs["z"], np.mod(values.astype(np.float64), by).astype(np.float32))


def test_a_chain_that_reads_each_value_several_times_is_compiled():
    """TVM writes a value out wherever it is read: without bounds a chain of n takes time and code of 3^n."""
    steps = 12
    text = "".join(
        f"p{i} = Greater(v{i}, zero) s{i} = Sin(v{i}) m{i} = Mul(v{i}, v{i}) v{i + 1} = Where(p{i}, s{i}, m{i}) "
        for i in range(steps)
    )
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[4, 6] v0) => (float[4, 6] v{steps})
        <float zero = {{0}}> {{ {text} }}"""
    )
    inputs = random_inputs(model)
    outputs, _ = run_plan(lower(model, host_features()), inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():
        np.testing.assert_allclose(outputs[name], wanted, rtol=1e-5, atol=1e-6)
