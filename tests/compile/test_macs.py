"""Products that go through TVM are counted: their multiply-accumulates, and with these their modelled energy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from onnx import TensorProto

from subbyte.dialect.exactness import INTEGER_PRODUCTS
from subbyte.dialect.known_operators import NO_PRODUCTS
from subbyte.dialect.macs import MACS, Shapes, UnknownShape
from subbyte.runtime.energy_model import OPERATIONS_PJ, model_operators
from subbyte.tvm_kernels.fallback import PRODUCTS
from subbyte.tvm_kernels.lowering import lower

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def model(op: str, x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...], kind: int, **attributes: Any) -> Any:
    """One product of an input with a constant, and a Floor that TVM fuses with it; for its sake float64 stays."""
    weight = np.random.default_rng(0).standard_normal(w).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node(op, ["x", "w"], ["p"], "product", **attributes),
        helper.make_node("Floor", ["p"], ["y"], "floor"),
    ]
    info = [helper.make_tensor_value_info("x", kind, x)], [helper.make_tensor_value_info("y", kind, y)]
    graph = helper.make_graph(nodes, "g", *info, [onnx.numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("made", "macs"),
    [
        (model("Conv", (1, 3, 5, 5, 5), (4, 3, 2, 2, 2), (1, 4, 4, 4, 4), FLOAT), 4 * 4**3 * 3 * 8),
        (model("ConvTranspose", (1, 3, 5, 5), (3, 4, 2, 2), (1, 4, 6, 6), FLOAT), 3 * 25 * 4 * 4),
        (model("MatMul", (6, 7), (7, 5), (6, 5), DOUBLE), 6 * 7 * 5),
        (model("Einsum", (6, 7), (7, 5), (6, 5), DOUBLE, equation="ij,jk->ik"), 6 * 7 * 5),
    ],
    ids=["Conv3d", "ConvTranspose", "float64 MatMul", "float64 Einsum"],
)
def test_what_goes_through_tvm_is_counted(made: onnx.ModelProto, macs: int) -> None:
    plan = lower(made, frozenset())
    assert {call.kind for call in plan.calls} == {"relax"}
    assert sum(call.macs for call in plan.calls) == macs
    energy = model_operators(plan.calls, len(plan.weights), plan.arena_bytes)
    least = macs * (OPERATIONS_PJ["float32 multiply"] + OPERATIONS_PJ["float32 add"])
    assert sum(row.modelled_compute_pj for row in energy.operators) >= least


def test_every_product_that_the_fallback_names_is_counted() -> None:
    assert set(MACS) >= PRODUCTS | INTEGER_PRODUCTS


@pytest.mark.parametrize(
    ("op", "inputs", "output", "attributes", "macs"),
    [
        ("Gemm", [(7, 6), (7, 5)], (6, 5), {"transA": 1}, 210),
        ("QLinearConv", [(1, 3, 4, 4), (), (), (8, 3, 3, 3)], (1, 8, 2, 2), {}, 32 * 27),
        ("LSTM", [(9, 2, 5), (1, 16, 5), (1, 16, 4)], (9, 1, 2, 4), {}, 9 * 2 * 16 * 9),
        ("Attention", [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)], (2, 3, 5, 6), {}, 2 * 3 * 5 * 7 * (8 + 6)),
        ("Einsum", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), {"equation": "...ij,...jk->...ik"}, 120),
        ("Einsum", [(3, 3)], (), {"equation": "ii"}, 0),
        ("AffineGrid", [(2, 2, 3), (4,)], (2, 5, 7, 2), {}, 2 * 5 * 7 * 2 * 3),
        ("CausalConvWithState", [(2, 6, 9), (6, 1, 4)], (2, 6, 9), {}, 2 * 6 * 9 * 4),
        ("com.microsoft.MatMulNBits", [(2, 5, 64), (8, 2, 16), (16,)], None, {"K": 64, "N": 8}, 2 * 5 * 64 * 8),
        *[
            (
                "LinearAttention",
                [(2, 3, 4 * 5), (2, 3, 2 * 5), (2, 3, 2 * 7)],
                (2, 3, 4 * 7),
                {"q_num_heads": 4, "kv_num_heads": 2, **rule},
                2 * 3 * 5 * 7 * per_step,
            )
            for rule, per_step in (({"update_rule": "gated"}, 2 + 4), ({}, 2 + 2 + 4))
        ],
    ],
)
def test_counts_by_hand(op: str, inputs: list[Any], output: Any, attributes: dict[str, Any], macs: int) -> None:
    assert MACS[op](Shapes(inputs, output, attributes)) == macs


def test_every_operator_of_onnx_is_a_product_or_none() -> None:
    """What is in neither table is refused. The body of a product, where ONNX gives one, has a product in it."""
    newest = [schema for schema in onnx.defs.get_all_schemas() if schema.domain == "" and schema.since_version <= 28]
    products = {name for name in MACS if "." not in name}
    assert products & NO_PRODUCTS == set()
    assert {schema.name for schema in newest} <= products | NO_PRODUCTS
    bodies = {schema.name: schema.function_body.node for schema in newest if schema.has_function}
    assert {name for name, body in bodies.items() if products & {node.op_type for node in body}} == {"AffineGrid"}


def test_a_shape_that_is_not_known_counts_nothing() -> None:
    with pytest.raises(UnknownShape):
        MACS["MatMul"](Shapes([None, (4, 3)], (2, 3), {}))
    with pytest.raises(UnknownShape):
        MACS["Conv"](Shapes([(1, 3, 4, 4), (8, 3, 3, 3)], None, {}))
