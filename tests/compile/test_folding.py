"""Constant folding: what it computes is what onnxruntime gives, and what a file may have computed is bounded."""

from __future__ import annotations

from contextlib import nullcontext
from math import erf

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import subbyte
from subbyte.errors import ModelError
from subbyte.files import limits
from subbyte.tvm_kernels import folding
from subbyte.tvm_kernels.lowering import lower_graph
from subbyte.tvm_kernels.onnx_model import load_model
from subbyte.tvm_kernels.read_graph import read_graph

FLOAT = onnx.TensorProto.FLOAT


def graph_of(nodes, constants):
    """Nodes on constants, of which the last one's result is added to the input."""
    infos = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", [1]), ("y", None))]
    infos[1] = helper.make_tensor_value_info("y", FLOAT, ["?"] * 2)
    nodes = [*nodes, helper.make_node("Add", ["x", nodes[-1].output[0]], ["y"], "last")]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_every_operator_that_is_folded_is_one_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    newest = {"BitCast", "CumProd", "Swish", "RMSNormalization"}  # of younger onnx packages than the oldest we take
    assert set(folding.FOLDED) - newest <= known


def test_constants_are_computed():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(3, 4)
    nodes = [helper.make_node("Gemm", ["a", "b"], ["c"], transA=0), helper.make_node("Erf", ["c"], ["d"])]
    graph = read_graph(load_model(graph_of(nodes, {"a": a, "b": b})))
    assert [node.op for node in graph.order()] == ["Add"]
    assert np.allclose(graph.values["d"].data, np.vectorize(erf)(a @ b), rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "constants", "steps"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["r"]), {"a": np.ones((5, 3)), "b": np.ones((3, 7))}, 5 * 7 * 3),
        (helper.make_node("Gemm", ["a", "b"], ["r"], transA=1), {"a": np.ones((3, 5)), "b": np.ones((3, 7))}, 105),
        (
            helper.make_node("MatMulInteger", ["a", "b"], ["r"]),
            {"a": np.ones((5, 3), np.int8), "b": np.ones((3, 7), np.int8)},
            64 * 105,
        ),
    ],
)
def test_the_steps_of_a_product_are_its_multiply_adds(node, constants, steps):
    floats = {name: array.astype(np.float32) if array.dtype == float else array for name, array in constants.items()}
    cast = [helper.make_node("Cast", ["r"], ["f"], to=FLOAT)]
    graph = read_graph(load_model(graph_of([node, *cast], floats)))
    elements = sum(array.size for array in constants.values()) + 35 + 2 * 35  # of the product, and of the Cast
    assert graph.folded_steps == steps + 64 * elements
    assert graph.folded_bytes == 2 * 4 * 35


def test_what_is_computed_is_added_up(monkeypatch):
    """Each of ten is within the limit; all together they are not."""
    ones = np.ones((8, 8), np.float32)
    nodes = [helper.make_node("MatMul", ["a" if i == 0 else f"t{i}", "a"], [f"t{i + 1}"], f"n{i}") for i in range(10)]
    model = graph_of(nodes, {"a": ones})
    read_graph(load_model(model))
    monkeypatch.setattr(limits, "FOLDED_BYTES", 5 * 256)
    with pytest.raises(
        ModelError, match=r"node 'n5' \(MatMul of constants \[8, 8\], \[8, 8\]\).*1536 bytes .*at most 1280"
    ):
        read_graph(load_model(model))
    monkeypatch.setattr(limits, "FOLDED_BYTES", 10 * 256)
    monkeypatch.setattr(limits, "FOLDED_STEPS", 3 * (8**3 + 64 * 3 * 64))
    with pytest.raises(ModelError, match=r"node 'n3' .* steps up to here"):
        read_graph(load_model(model))


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (helper.make_node("ConstantOfShape", ["s"], ["r"], "big"), {"s": np.array([1 << 15, (1 << 15) + 1])}),
        (
            helper.make_node("Expand", ["o", "s"], ["r"], "big"),
            {"o": np.ones((1, 1), np.float32), "s": np.array([1 << 15, (1 << 15) + 1])},
        ),
    ],
)
def test_small_files_do_not_become_large(node, constants):
    """Constants of more than 2 GiB: nothing is allocated."""
    with pytest.raises(ModelError, match=r"node 'big' .* bytes up to here, at most 2147483648"):
        read_graph(load_model(graph_of([node], constants)))


def test_the_largest_products_are_refused_before_they_are_computed():
    """6000 x 6000 times itself in integers, for which there is no fast library."""
    ones = np.ones((6000, 6000), np.int8)
    nodes = [
        helper.make_node("MatMulInteger", ["a", "a"], ["i"], "p"),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
    ]
    with pytest.raises(ModelError, match=r"node 'p' \(MatMulInteger .* steps up to here, at most 274877906944"):
        read_graph(load_model(graph_of(nodes, {"a": ones})))


def test_an_operator_that_is_not_named_stays_a_node():
    weight = np.ones((1, 1, 1, 1), np.float32)
    nodes = [
        helper.make_node("Conv", ["w", "w"], ["c"], "conv"),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
    ]
    graph = lower_graph(graph_of(nodes, {"w": weight, "s": np.array([1, 1])}))
    assert any(node.name == "conv" for node in graph.order())


def test_a_hostile_pattern_is_never_matched():
    """(a+)+$ takes time that doubles with every letter."""
    text = numpy_helper.from_array(np.array(["a" * 60 + "b"], dtype=object), "t")
    nodes = [
        helper.make_node("RegexFullMatch", ["t"], ["m"], "match", pattern="(a+)+$"),
        helper.make_node("Cast", ["m"], ["f"], to=FLOAT),
    ]
    model = graph_of(nodes, {})
    model.graph.initializer.append(text)
    with pytest.raises(ModelError, match="node 'match' works on strings; only numbers are compiled"):
        read_graph(load_model(model))


DIVIDED = helper.make_node("Div", ["a", "b"], ["q"], "quotient")


@pytest.mark.parametrize(
    ("nodes", "constants", "refused"),
    [
        ([DIVIDED], {"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}, True),
        ([DIVIDED], {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}, True),
        ([helper.make_node("Exp", ["a"], ["e"], "power")], {"a": np.full(4, 1000, np.float32)}, True),
        ([helper.make_node("Log", ["a"], ["l"], "log")], {"a": np.full(4, -1, np.float32)}, True),
        ([helper.make_node("Div", ["x", "a"], ["q"], "by 0")], {"a": np.zeros(4, np.float32)}, False),
    ],
    ids=["infinite quotient", "no quotient", "infinite power", "no logarithm", "division at run time"],
)
def test_numpy_says_nothing_of_constants(nodes, constants, refused, tmp_path, recwarn):
    """What constants make that is no number is refused in our words, or computed; NumPy warns of neither."""
    with pytest.raises(ModelError, match="NaN or infinite") if refused else nullcontext():
        subbyte.compile(graph_of(nodes, constants), tmp_path / "m.subbyte")
    assert not recwarn.list
