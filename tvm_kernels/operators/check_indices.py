"""Constant and run-time indices: each is checked to be in range before an operator uses it.

Gather(x, constant)    ->  Gather(x, constant counted from the start), or a ModelError
Gather(x, i)           ->  Gather(x, CheckIndices(i))

So for every operator of `INDEXED`, which gives its index input and the range of indices. TVM and our converters then
use indices unchecked. (OneHot is not among them: an index out of its range is not an error but a row of off values.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from subbyte.dialect.indices import INDEXED, Indices
from subbyte.errors import InputError, ModelError
from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.graph import Graph, Node, shapes_of
from subbyte.tvm_kernels.internal_operators import KERNEL
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator, run

Index = Literal["int32", "int64"]


@dataclass(frozen=True, eq=False)
class CheckIndices(Operator):
    """Indices int32 or int64 [count] to int32 counted from the start: element i in 0 .. sizes[i % len(sizes)] - 1.

    With `negative`, -1 is the last element of an axis, as in ONNX. Any other index fails the run.
    """

    count: int
    sizes: tuple[int, ...]
    dtype: Index
    negative: bool = True
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        given = inputs[0].reshape(-1)
        size = np.resize(np.array(self.sizes, np.int64), given.size)
        lowest = -size if self.negative else 0 * size
        wrong = np.flatnonzero((given < lowest) | (given >= size))
        if wrong.size:
            at = int(wrong[0])
            raise InputError(
                f"operator '{self.name}': index {given[at]}, element {at} of its indices, is out of range; "
                f"expected {lowest[at]} .. {size[at] - 1}"
            )
        return [np.where(given < 0, given + size, given).astype(np.int32)]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        made, sizes = [], (7, 300)
        for dtype in get_args(Index):
            given = random.integers(-np.array(sizes), sizes, (21, 2)).astype(dtype)
            made.append(Example(cls(f"indices {dtype}", given.size, sizes, dtype), (given,)))
        return made


def _operators(graph: Graph, constant: bool) -> list[tuple[Node, Indices, CheckIndices]]:
    """The nodes whose indices are constants, or run-time values, and the check of each."""
    found = []
    for node in graph.order():
        indexed = INDEXED.get(node.op)
        if indexed is None or node.domain or node.operator is not None:
            continue
        value = graph.values[node.inputs[indexed.input]]
        if value.size and value.is_constant == constant:
            sizes = indexed.sizes(shapes_of(graph, node))
            check = CheckIndices(node.name, value.size, sizes, value.memory_dtype, indexed.negative)  # type: ignore[arg-type]
            found.append((node, indexed, check))
    return found


def _read_by(graph: Graph, node: Node, indexed: Indices, checked: str) -> None:
    inputs = list(node.inputs)
    inputs[indexed.input] = checked
    graph.set_inputs(node, inputs)


def constants(graph: Graph) -> None:
    """Count constant indices from the start; raises ModelError for one that is out of range."""
    for node, indexed, check in _operators(graph, constant=True):
        data = graph.values[node.inputs[indexed.input]].data
        assert data is not None
        try:
            (checked,) = run(check, [data])
        except InputError as error:
            raise ModelError(f"{error}. The file is damaged, export it again") from error
        if (data < 0).any():
            name = graph.constant(checked.astype(data.dtype).reshape(data.shape), node.inputs[indexed.input])
            _read_by(graph, node, indexed, name)


def at_run_time(graph: Graph) -> None:
    """Insert a check before every node that has run-time indices."""
    for node, indexed, check in _operators(graph, constant=False):
        given = graph.values[node.inputs[indexed.input]]
        checked = graph.fresh(given.name)
        graph.add_value(checked, "int32", given.shape)
        graph.add(Node("CheckIndices", [given.name], [checked], {}, node.name, KERNEL, check))
        _read_by(graph, node, indexed, checked)
