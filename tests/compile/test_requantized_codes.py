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
