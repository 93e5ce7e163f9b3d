"""What a lowered graph consists of, and whether it gives onnxruntime's bits."""

from __future__ import annotations

import numpy as np
from run_plan import onnxruntime_outputs, random_inputs

from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.lowering import lower_graph


def kernels(graph):
    """Kernels in order, moves of axes left out."""
    return [node for node in graph.order() if node.operator is not None and node.op != "Permute"]


def kinds(graph):
    """Operators in order, views left out."""
    return [node.op for node in graph.order() if node.op != "View"]


def steps_of(node):
    return [type(step).__name__ for step in node.operator.epilogue.steps]


def forms_of(node):
    return [type(store).__name__ for store in node.operator.epilogue.stores]


def assert_equal(model, graph=None):
    """The lowered graph gives onnxruntime's bits."""
    graph = lower_graph(model) if graph is None else graph
    inputs = random_inputs(model)
    wanted = onnxruntime_outputs(model, inputs)
    got = interpret(graph, inputs)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype
        assert np.array_equal(got[name], array), name
    return graph
