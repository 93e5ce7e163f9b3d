"""Operators of very many inputs or outputs: the same numbers, by nodes of few."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import subbyte
from subbyte.tvm_kernels import assembly
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.variadic import MOST

FLOAT = onnx.TensorProto.FLOAT
CONSTANTS = 200


def of_many(op, count, axis=None):
    """`count` different values of the input [3, 8], then the operator, and a Relu."""
    shifts = [numpy_helper.from_array(np.full((3, 8), i - count / 2, np.float32), f"c{i}") for i in range(count)]
    nodes = [helper.make_node("Add", ["x", f"c{i}"], [f"t{i}"], f"n{i}") for i in range(count)]
    attributes = {} if axis is None else {"axis": axis}
    nodes.append(helper.make_node(op, [f"t{i}" for i in range(count)], ["m"], "many", **attributes))
    nodes.append(helper.make_node("Relu", ["m"], ["y"], "last"))
    return model_of(nodes, shifts, (3, 8), ["y"])


def split(count, sizes, axis):
    """The input in `count` parts, each negated, put together in the other order."""
    nodes = [helper.make_node("Split", ["x", "s"], [f"t{i}" for i in range(count)], "many", axis=axis)]
    nodes += [helper.make_node("Neg", [f"t{i}"], [f"u{i}"], f"n{i}") for i in range(count)]
    nodes.append(helper.make_node("Concat", [f"u{i}" for i in reversed(range(count))], ["y"], "c", axis=axis))
    shape = (2, sum(sizes)) if axis else (sum(sizes), 2)
    return model_of(nodes, [numpy_helper.from_array(np.array(sizes), "s")], shape, ["y"])


def model_of(nodes, constants, shape, outputs):
    infos = [helper.make_tensor_value_info("x", FLOAT, shape)]
    made = [helper.make_tensor_value_info(name, FLOAT, ["?"] * 2) for name in outputs]
    graph = helper.make_graph(nodes, "g", infos, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def of_constants(op, shapes=((8,), (1,), (3, 1))):
    """The operator of the input [3, 8], in the middle, and 200 different constants; then a Relu."""
    rng = np.random.default_rng(1)
    names = [f"c{i}" for i in range(CONSTANTS)]
    constants = [
        numpy_helper.from_array(rng.standard_normal(shapes[i % len(shapes)]).astype(np.float32), name)
        for i, name in enumerate(names)
    ]
    half = CONSTANTS // 2
    nodes = [
        helper.make_node(op, [*names[:half], "x", *names[half:]], ["m"], "many"),
        helper.make_node("Relu", ["m"], ["y"], "last"),
    ]
    return model_of(nodes, constants, (3, 8), ["y"])


@pytest.mark.parametrize("count", [MOST, MOST + 1, 100, 300])
@pytest.mark.parametrize(("op", "axis"), [("Concat", 0), ("Concat", 1), ("Sum", None), ("Max", None), ("Min", None)])
def test_many_inputs_give_the_same_bits(op, axis, count):
    model = of_many(op, count, axis)
    graph = lower_graph(model)
    assert all(len(node.inputs) <= MOST + 1 for node in graph.order())
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    got = interpret(graph, {"x": x})["y"]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("op", ["Sum", "Max", "Min"])
def test_many_constants_give_the_same_bits(op):
    model = of_constants(op)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(interpret(lower_graph(model), {"x": x})["y"], want)


def test_constants_take_no_work_of_their_own():
    """Those of a sum become steps of our kernels, those of a maximum one constant for each shape; TVM lowers neither
    in the number of constants."""
    features = frozenset()
    calls = assembly.assemble(lower_graph(of_constants("Sum", [(8,)]), features), features).calls
    assert len(calls) <= CONSTANTS // 16 + 1
    assert not any(call.kernel.startswith("relax:") for call in calls)
    (node,) = (node for node in lower_graph(of_constants("Max"), features).order() if node.op == "Max")
    assert len(node.inputs) == 4


@pytest.mark.parametrize(("count", "axis"), [(MOST, 1), (MOST + 1, 0), (100, 1), (300, 0)])
def test_many_outputs_give_the_same_bits(count, axis):
    sizes = [1 + i % 3 for i in range(count)]
    model = split(count, sizes, axis)
    graph = lower_graph(model)
    assert all(len(node.outputs) <= MOST for node in graph.order())
    x = np.random.default_rng(0).standard_normal([2, sum(sizes)] if axis else [sum(sizes), 2]).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(interpret(graph, {"x": x})["y"], want)


@pytest.mark.parametrize("model", [of_many("Concat", 100, 1), split(100, [2] * 100, 1)], ids=["Concat", "Split"])
def test_they_compile_and_replay(model, tmp_path):
    """The bundle gives what onnxruntime gives, or it is refused."""
    report = subbyte.compile(model, tmp_path / "m.subbyte")
    assert report.not_replayed is None
