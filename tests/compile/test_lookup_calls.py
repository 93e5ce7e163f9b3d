"""Calls of Lookup in files: the kernel where codes go in, the body elsewhere; onnxruntime's numbers in each case."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as helper
import pytest
from lowered import assert_equal, forms_of, kernels
from run_plan import onnxruntime_outputs, run_plan

from subbyte.dialect.lookup import Lookup
from subbyte.dialect.names import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET
from subbyte.dialect.quantize import Quantize
from subbyte.errors import ModelError
from subbyte.tvm_kernels.lowering import lower, lower_graph
from subbyte.tvm_kernels.machines.host import host_features

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=256).astype(np.float32)
INT8 = {"low": -128, "high": 127}


def model(
    *nodes: onnx.NodeProto, shape: tuple[int, ...] = (2, 3, 4, 5), kind: int = 1, out: str = "y", **constants: Any
) -> onnx.ModelProto:
    tensors = [onnx.numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in constants.items()]
    given = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info(out, 1, shape)], tensors)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = [Lookup.proto, Quantize.proto]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, functions=functions)


def quantize(x: str, codes: str, low: str = "low", high: str = "high") -> onnx.NodeProto:
    return helper.make_node("Quantize", [x, "inverse", low, high], [codes], codes, domain=DOMAIN)


def look_up(codes: str, y: str = "y", table: str = "table", low: str = "first") -> onnx.NodeProto:
    return helper.make_node("Lookup", [codes, table, low], [y], y, domain=DOMAIN)


@pytest.mark.parametrize("low", [0, -128])
@pytest.mark.parametrize("first", [0, -128, -100])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 4, 5), (3, 7)])
def test_codes_of_a_quantizer(low: int, first: int, shape: tuple[int, ...]) -> None:
    """Codes below the table's first, and beyond its last, have the entries at its ends."""
    nodes = quantize("x", "q"), look_up("q")
    made = model(*nodes, shape=shape, inverse=40, low=low, high=low + 255, table=TABLE, first=first)
    graph = assert_equal(made)
    assert "Lookup" in [node.op for node in kernels(graph)]
    assert graph.notes == []


@pytest.mark.parametrize(("kind", "zero"), [(3, -128), (2, 0)])
def test_codes_of_a_file(kind: int, zero: int) -> None:
    """int8 and uint8 that a run is given, and what QuantizeLinear makes of floats."""
    made = model(look_up("x"), shape=(1, 256), kind=kind, table=TABLE, first=zero)
    codes = np.arange(256).astype(np.uint8)
    x = codes.view(np.int8) if kind == 3 else codes
    got = run_plan(lower(made, host_features()), {"x": x[None]})[0]["y"]
    np.testing.assert_array_equal(got, onnxruntime_outputs(made, {"x": x[None]})["y"])
    np.testing.assert_array_equal(got[0], TABLE[x.astype(int) - zero])
    made = model(
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        look_up("q"),
        table=TABLE,
        first=zero,
        step=0.02,
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, [np.uint8, np.int8][kind - 2]), "zero"))
    graph = assert_equal(made)
    assert [node.op for node in kernels(graph)] == ["Elementwise", "Lookup"]


def test_codes_out_are_in_the_table() -> None:
    """Quantize behind a look-up, behind a scale: one kernel from bytes to bytes; the last one gives floats."""
    nodes = (
        *(quantize("x", "q"), look_up("q", "a"), helper.make_node("Mul", ["a", "c"], ["b"], "scale")),
        *(quantize("b", "r"), look_up("r", "y")),
    )
    made = model(*nodes, inverse=30, **INT8, table=TABLE, first=-128, c=0.7)
    graph = assert_equal(made)
    found = [node for node in kernels(graph) if node.op == "Lookup"]
    assert [forms_of(node) for node in found] == [["ToCodes"], ["ToFloat"]]
    assert found[0].operator.stored()[0].dtype == np.uint8
    x = RNG.normal(scale=4, size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(compiled(made, x), in_numpy(x))


def compiled(made: onnx.ModelProto, x: Any) -> Any:
    return run_plan(lower(made, host_features()), {"x": x})[0]["y"]


def in_numpy(x: Any) -> Any:
    """The model of the test above, by its definition."""
    codes = np.clip(np.rint(x * np.float32(30)), -128, 127)
    scaled = TABLE[(codes + 128).astype(int)] * np.float32(0.7)
    codes = np.clip(np.rint(scaled * np.float32(30)), -128, 127)
    return TABLE[(codes + 128).astype(int)]


@pytest.mark.parametrize("entries", [1, 16, 255, 257])
def test_another_number_of_entries_is_declined_and_computed_by_the_body(entries: int) -> None:
    table = RNG.normal(size=entries).astype(np.float32)
    made = model(quantize("x", "q"), look_up("q"), inverse=30, **INT8, table=table, first=-8)
    (node,) = [node for node in lower_graph(made).order() if node.op == "Lookup"]
    assert node.declined == {"table look-up": f"its table is float32 [{entries}]; handled: float32 [256]"}
    graph = lower_graph(made, frozenset())
    assert "Lookup" not in [node.op for node in graph.order()]
    assert graph.notes == [
        "'y' (subbyte.Lookup) is computed by its body in standard operators: it has no kernel; "
        f"no 'table look-up', as its table is float32 [{entries}]; handled: float32 [256]"
    ]
    assert_equal(made, graph)


@pytest.mark.parametrize(
    ("table", "first", "result", "reason"),
    [
        (TABLE.reshape(16, 16), 0, (2, 3, 4, 5, 16), "its table is float32 [16, 16]; handled: float32 [256]"),
        (TABLE.reshape(256, 1), 0, (2, 3, 4, 5, 1), "its table is float32 [256, 1]; handled: float32 [256]"),
        (TABLE, np.zeros((1, 1, 1, 1, 1)), (1, 2, 3, 4, 5), "its lowest code has shape [1, 1, 1, 1, 1]"),
    ],
)
def test_results_of_another_shape_than_the_codes_are_computed_by_the_body(
    table: Any, first: Any, result: tuple[int, ...], reason: str
) -> None:
    made = model(quantize("x", "q"), look_up("q"), inverse=3, low=0, high=15, table=table, first=first)
    dims = made.graph.output[0].type.tensor_type.shape
    dims.ClearField("dim")
    dims.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in result)
    (node,) = [node for node in lower_graph(made).order() if node.op == "Lookup"]
    assert node.declined["table look-up"].startswith(reason)
    assert_equal(made, lower_graph(made, frozenset()))


def test_floats_are_looked_up_by_the_body() -> None:
    """The nearest entry, ties to even; at the ends the first and the last."""
    made = model(look_up("x"), shape=(8,), table=TABLE, first=-128)
    (node,) = lower_graph(made).order()
    assert node.declined == {"table look-up": "'x' is float32; handled: codes of at most 8 bits"}
    x = np.array([-1e9, -128.4, -1.5, -0.5, 0.5, 1.5, 126.7, 1e9], np.float32)
    got = compiled(made, x)
    np.testing.assert_array_equal(got, TABLE[[0, 0, 126, 128, 128, 130, 255, 255]])


def test_a_table_of_nan_is_refused() -> None:
    made = model(quantize("x", "q"), look_up("q"), inverse=30, **INT8, table=np.full(256, np.nan), first=-128)
    with pytest.raises(ModelError, match="tensor 'table': 256 of its 256 elements are NaN"):
        lower_graph(made)


def test_an_infinite_entry_is_a_value() -> None:
    table = np.where(np.arange(256) < 9, -np.inf, TABLE)
    assert_equal(model(quantize("x", "q"), look_up("q"), inverse=30, **INT8, table=table, first=-128))


def test_no_element_is_refused() -> None:
    with pytest.raises(ModelError, match="size 0 along axis 1; at least 1 is needed"):
        lower_graph(model(quantize("x", "q"), look_up("q"), shape=(2, 0), inverse=30, **INT8, table=TABLE, first=0))
