"""The work of compiling grows in proportion to the graph: visits of nodes are counted, not seconds.

benchmarks/compile_time.py measures the seconds.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from subbyte.tvm_kernels import assembly
from subbyte.tvm_kernels.graph import Graph
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.relax_import import Lowering
from subbyte.tvm_kernels.rewrites.pattern import Rule

FLOAT = onnx.TensorProto.FLOAT


def chain(count, operators=("Relu", "Neg", "Abs", "Sigmoid")):
    """Elementwise nodes in a row."""
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    ops = [operators[i % len(operators)] for i in range(count)]
    inputs = [[names[i], *(["c"] if op in ("Add", "Div") else [])] for i, op in enumerate(ops)]
    return model_of([helper.make_node(op, inputs[i], [names[i + 1]], f"n{i}") for i, op in enumerate(ops)])


def residuals(count):
    """A sum of two activations after another: which of them was made later is asked for each."""
    nodes = []
    for i in range(count):
        x = "x" if i == 0 else f"s{i - 1}"
        nodes += [helper.make_node("Relu", [x], [f"a{i}"]), helper.make_node("Sigmoid", [x], [f"b{i}"])]
        nodes.append(helper.make_node("Add", [f"a{i}", f"b{i}"], [f"s{i}" if i < count - 1 else "y"]))
    return model_of(nodes)


def fan(count):
    """One value that many nodes read, and one node that reads all of theirs."""
    nodes = [helper.make_node("Add", ["x", "c"], ["z"], "shared")]
    nodes += [helper.make_node("Sigmoid", ["z"], [f"t{i}"], f"n{i}") for i in range(count)]
    nodes.append(helper.make_node("Concat", [f"t{i}" for i in range(count)], ["y"], "concat", axis=1))
    return model_of(nodes)


def model_of(nodes):
    infos = [helper.make_tensor_value_info("x", FLOAT, [1, 8]), helper.make_tensor_value_info("y", FLOAT, [1, "?"])]
    constant = numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32), "c")
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def visits(model, monkeypatch):
    """How often a node is visited from the file to the plan: by a rule, in an order, as a user, by TVM."""
    counted = Counter()
    with monkeypatch.context() as patch:

        def count(owner, name, how_many):
            was = getattr(owner, name)

            def counting(*given, **more):
                result = was(*given, **more)
                counted[name] += how_many(given, result)
                return result

            patch.setattr(owner, name, counting)

        count(Rule, "apply", lambda given, result: 1)
        count(Graph, "order", lambda given, result: len(result))
        count(Graph, "users", lambda given, result: len(result))
        count(Lowering, "calls", lambda given, result: len(given[1]))
        plan = assembly.assemble(lower_graph(model, host_features()), host_features())
    assert plan.calls
    return counted


@pytest.mark.parametrize(
    "make",
    [chain, lambda n: chain(n, ["Add"]), lambda n: chain(n, ["Neg", "Abs"]), lambda n: residuals(n // 3), fan],
    ids=["mixed chain", "chain of one kernel's steps", "chain for TVM", "residuals", "fan"],
)
def test_visits_grow_in_proportion(make, monkeypatch):
    """Four times the nodes: four times the visits of each kind, where a quadratic step would make sixteen."""
    few, many = visits(make(120), monkeypatch), visits(make(480), monkeypatch)
    assert few["order"] >= 120
    for kind, count in many.items():
        assert count <= 5 * few[kind] + 50, (kind, few, many)


def test_equal_work_is_done_once(monkeypatch):
    """What TVM lowers, and the kernels that are built, are as many as there are different ones."""
    features = host_features()
    graph = lower_graph(chain(480), features)
    lowering, kernels = Lowering(graph), assembly.KernelCache(features)
    weights = assembly.ConstantPool()
    calls = 0
    for node in graph.order():
        if node.operator is None:
            calls += len(lowering.calls([node]))
        else:
            assembly._kernel_call(graph, node, kernels, weights)
    assert calls > 100
    assert len(lowering.lowered) <= 3
    assert len(kernels.known) <= 3


def test_a_kernel_has_at_most_so_many_steps():
    """Each may bring an argument; the C core takes 32."""
    plan = assembly.assemble(lower_graph(chain(200, ["Add"]), host_features()), host_features())
    assert max(len(call.arguments) for call in plan.calls) <= 32
    assert len(plan.calls) == 13
