"""A kernel row for a weight of several parts: registered from outside of the package, it is planned and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from subbyte.errors import CompileError
from subbyte.formats import LowBitTensor, PerChannel, SelectColumns, Structure, Sum, get
from subbyte.runtime.energy_model import model_operators
from subbyte.tvm_kernels.assembly import assemble
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import KERNEL
from subbyte.tvm_kernels.kernels import registry
from subbyte.tvm_kernels.kernels.registry import Built, choose, kernel
from subbyte.tvm_kernels.operators import Epilogue, Facts, Float, MatMul, Product
from subbyte.tvm_kernels.plan import KernelCall

ROWS, DEPTH, COLUMNS = 2, 8, 3
RNG = np.random.default_rng(6)


def part(fmt: str, columns: int = DEPTH) -> LowBitTensor:
    levels = RNG.choice(get(fmt).levels.values, (COLUMNS, columns))
    return LowBitTensor.from_levels(get(fmt), levels, np.ones(COLUMNS, np.float32), PerChannel())


def planned(operator: Product[Any, Any]) -> KernelCall:
    graph = Graph("structure", 21)
    graph.add_value("x", "float32", (ROWS, DEPTH))
    graph.add_value("y", "float32", (ROWS, COLUMNS))
    graph.inputs, graph.outputs = ["x"], ["y"]
    graph.add(Node("Product", ["x"], ["y"], {}, "p", KERNEL, operator))
    (call,) = assemble(graph, frozenset()).calls
    return call


def decoded(op: Product[Any, Any]) -> Built:
    """A kernel of floats, for which all parts are decoded when it is built."""
    floats = op.in_float()
    return choose(floats, frozenset()).kernel.build(floats)


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_rows", list(registry._rows))
    kernel("float-structure", serves=Product[Float, Structure])(decoded)


@pytest.mark.parametrize(
    ("whole", "name", "counts"),
    [
        (Structure((part("binary"), part("ternary")), Sum()), "Sum(binary, ternary)", (0, 2)),
        (Structure((part("int4"), part("nf4")), Sum()), "Sum(int4, nf4)", (1, 2)),
        (
            Structure((part("nf4", 6), part("int4", 2)), SelectColumns(np.array([0, 1, 0, 0, 0, 1, 0, 0], np.uint8))),
            "SelectColumns(nf4, int4)",
            (0.75, 1),
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_its_energy_is_that_of_its_parts(whole: Structure, name: str, counts: tuple[float, float]) -> None:
    """A plane is a product more for each weight; a column is a product of its own format."""
    call = planned(Product("p", Float(), whole, MatMul(ROWS, DEPTH, COLUMNS), Epilogue()))
    assert (call.kernel, call.weights, call.weight_bytes) == ("float-structure", name, whole.nbytes)
    reads, products = counts
    (row,) = model_operators([call], 100, 100).operators
    macs, elements = ROWS * DEPTH * COLUMNS, ROWS * COLUMNS
    assert row.modelled_compute_pj == pytest.approx(macs * (reads * 10 + products * 4.6) + elements * 4.6)


def test_products_without_their_operations_are_refused() -> None:
    @dataclass(frozen=True, eq=False)
    class Silent(Product[Any, Any], registers=False):
        def facts(self) -> Facts:
            return Facts(weights="int8")

    silent = Silent("p", Float(), part("int4"), MatMul(ROWS, DEPTH, COLUMNS), Epilogue())
    registry._rows.append(registry.KernelRow("silent", Silent, frozenset(), 0, lambda op: None, decoded))
    with pytest.raises(CompileError, match="operator 'p', FloatProduct: its facts lack 'per_mac', the operations of"):
        planned(silent)
