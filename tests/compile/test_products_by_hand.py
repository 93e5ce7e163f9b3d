"""Graphs whose products have operands that no ONNX pattern makes yet, from graph to plan to numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from run_plan import run_plan

from subbyte.formats import LowBitTensor, PerChannel, get
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.interpret import interpret
from subbyte.tvm_kernels.plan import Plan
from subbyte.tvm_kernels.targets import host_features

RNG = np.random.default_rng(31)
HEADS, ROWS, DEPTH, KEYS = 2, 5, 40, 7
SCORES = ops.MatMul(ROWS, DEPTH, KEYS, HEADS)


def scores(form: ops.ToCodes | ops.ToBits) -> Graph:
    """Queries and keys, float32 inputs stored by `form`, and their products."""
    graph = Graph("scores", 21)
    for name, rows in (("q", ROWS), ("k", KEYS)):
        shape = (HEADS, rows, DEPTH)
        graph.add_value(name, "float32", shape)
        graph.add_value(f"{name}:stored", "float32", shape, storage=form.storage)
        quantizer = ops.Elementwise(f"quantize {name}", HEADS * rows, DEPTH, ops.Epilogue((), (form,)))
        graph.add(Node("Elementwise", [name], [f"{name}:stored"], {}, quantizer.name, "kernel", quantizer))
    graph.add_value("y", "float32", (HEADS, ROWS, KEYS))
    product = ops.Product("scores", form.storage, form.storage, SCORES, ops.Epilogue((ops.Scale(ops.constant(0.5)),)))
    graph.add(Node(product.kind, ["q:stored", "k:stored"], ["y"], {}, "scores", "kernel", product))
    graph.inputs, graph.outputs = ["q", "k"], ["y"]
    return graph


def given() -> dict[str, Any]:
    return {n: RNG.standard_normal((HEADS, rows, DEPTH)).astype(np.float32) for n, rows in (("q", ROWS), ("k", KEYS))}


def planned(graph: Graph, inputs: dict[str, Any]) -> tuple[Plan, Any]:
    plan = assemble(graph, host_features())
    outputs, _ = run_plan(plan, inputs)
    np.testing.assert_array_equal(outputs["y"], interpret(graph, inputs)["y"])
    return plan, outputs["y"]


def test_scores_of_codes() -> None:
    inputs = given()
    plan, y = planned(scores(ops.ToCodes(20.0, ops.Codes(-128, 127, 128))), inputs)
    codes = {name: np.clip(np.rint(x * np.float32(20)), -128, 127).astype(np.int64) for name, x in inputs.items()}
    np.testing.assert_array_equal(y, 0.5 * (codes["q"] @ codes["k"].swapaxes(1, 2)))
    call = plan.calls[-1]
    assert (call.kernel, call.activation, call.weights, call.macs) == ("run-time-codes", "int8", "int8", SCORES.macs)


def test_scores_of_binary_queries_and_keys() -> None:
    inputs = given()
    plan, y = planned(scores(ops.ToBits(ops.constant(0.0), ops.Bits(DEPTH))), inputs)
    signs = {name: np.where(x >= 0, 1, -1) for name, x in inputs.items()}
    np.testing.assert_array_equal(y, 0.5 * (signs["q"] @ signs["k"].swapaxes(1, 2)))
    call = plan.calls[-1]
    assert (call.kernel, call.activation, call.weights) == ("run-time-popcount", "binary", "binary")


def test_weight_only_int8_keeps_its_bytes() -> None:
    levels, scale = RNG.integers(-127, 128, (KEYS, DEPTH)), RNG.random(KEYS)
    weight = LowBitTensor.from_levels(get("int8"), levels, scale, PerChannel(0))
    graph = Graph("weight_only", 21)
    graph.add_value("x", "float32", (ROWS, DEPTH))
    graph.add_value("y", "float32", (ROWS, KEYS))
    after = ops.Epilogue((ops.Scale(ops.constant(scale)),))
    product = ops.Product("w", ops.Float(), weight, ops.MatMul(ROWS, DEPTH, KEYS), after)
    graph.add(Node(product.kind, ["x"], ["y"], {}, "w", "kernel", product))
    graph.inputs, graph.outputs = ["x"], ["y"]
    x = RNG.standard_normal((ROWS, DEPTH)).astype(np.float32)
    plan = assemble(graph, frozenset())
    outputs, _ = run_plan(plan, {"x": x})
    np.testing.assert_allclose(outputs["y"], x @ (levels * scale[:, None]).T.astype(np.float32), rtol=1e-4, atol=1e-4)
    (call,) = plan.calls
    assert (call.kernel, call.activation, call.weights) == ("float-int8-portable", "float32", "int8")
    assert len(plan.weights) < 2 * KEYS * DEPTH  # float32 would be four bytes each
