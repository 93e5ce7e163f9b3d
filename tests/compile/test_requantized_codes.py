"""Codes that are scaled and quantized again: the same bytes where every level comes back, else another kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowered import assert_equal, kernels
from onnx import helper, numpy_helper

from subbyte.dialect.lookup import Lookup
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from subbyte.dialect.quantize import Quantize

SIGNED, UNSIGNED = (-128, 127), (0, 255)


def model(first: tuple[int, int], step: float | None, inverse: float, second: tuple[int, int]) -> onnx.ModelProto:
    """A table look-up of Quantize(step x Quantize(30 x)); without a step, of Quantize(Quantize(30 x))."""
    table = np.random.default_rng(0).normal(size=256)
    constants = {"thirty": 30, "low": first[0], "high": first[1], "inverse": inverse}
    constants |= {"bottom": second[0], "top": second[1], "table": table} | ({} if step is None else {"step": step})
    nodes = [helper.make_node("Quantize", ["x", "thirty", "low", "high"], ["q"], "q", domain=DOMAIN)]
    if step is not None:
        nodes.append(helper.make_node("Mul", ["q", "step"], ["r"], "r"))
    again = "q" if step is None else "r"
    nodes.append(helper.make_node("Quantize", [again, "inverse", "bottom", "top"], ["s"], "s", domain=DOMAIN))
    nodes.append(helper.make_node("Lookup", ["s", "table", "bottom"], ["y"], "y", domain=DOMAIN))
    tensors = [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in constants.items()]
    values = [helper.make_tensor_value_info(name, 1, [2, 300]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [Quantize.proto, Lookup.proto]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)


@pytest.mark.parametrize("levels", [SIGNED, UNSIGNED, (-8, 7)])
@pytest.mark.parametrize("step", [None, 1.0, 2.0**-7, 0.1, 1 / 3, 1.2345e-4])
def test_the_same_step_and_range_leave_the_bytes(levels: tuple[int, int], step: float | None) -> None:
    made = model(levels, step, 1.0 if step is None else float(1 / np.float32(step)), levels)
    graph = assert_equal(made)
    assert [node.op for node in kernels(graph)] == ["Elementwise", "Lookup"]


@pytest.mark.parametrize(
    ("first", "inverse", "second"),
    [
        (SIGNED, 10.05, SIGNED),  # 127 becomes 128
        (SIGNED, 20.0, SIGNED),
        (SIGNED, 10.0, (-127, 127)),
        (SIGNED, 10.0, UNSIGNED),
        ((0, 15), 10.0, SIGNED),  # the same levels, other bytes
    ],
)
def test_another_step_range_or_zero_point_is_computed(
    first: tuple[int, int], inverse: float, second: tuple[int, int]
) -> None:
    graph = assert_equal(model(first, 0.1, inverse, second))
    assert len(kernels(graph)) == 3


@pytest.mark.parametrize("first", [0, 2, 1])
def test_a_part_of_codes_is_taken_from_their_bytes(first: int) -> None:
    """Where it begins at a multiple of 64 bytes it is a view (0 and 2), else a copy."""
    made = model(SIGNED, 0.1, 10.0, SIGNED)
    made.graph.node[1].CopyFrom(helper.make_node("Slice", ["wide", "first", "last", "axis"], ["r"], "r"))
    made.graph.node.insert(1, helper.make_node("Concat", ["q", "q"], ["wide"], "wide", axis=0))
    made.graph.initializer.extend(
        numpy_helper.from_array(np.array([n], np.int64), name)
        for name, n in (("first", first), ("last", first + 2), ("axis", 0))
    )
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 32
    made.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.float32(1), "inverse"))
    graph = assert_equal(made)
    assert [node.op for node in kernels(graph)] == ["Elementwise", "Lookup"]
