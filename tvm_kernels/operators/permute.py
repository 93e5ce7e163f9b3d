"""Axes in another order: transposes of the file and of the layout, once every value has its layout.

Transpose that moves no element (but axes of one)   ->  View
Transpose of floats or codes                        ->  Permute
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator
from subbyte.tvm_kernels.rewrites.code_values import packed
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import EVERY, Any, Op, Outcome
from subbyte.tvm_kernels.rewrites.register import rewrite

TRANSPOSE = Op("Transpose", Any("x"), dtypes=EVERY, attributes=("perm",))


@dataclass(frozen=True, eq=False)
class Permute(Operator):
    """numpy.transpose(x, perm) of a tensor of `shape`; float32, or uint8 for codes."""

    shape: tuple[int, ...]
    perm: tuple[int, ...]
    dtype: Literal["float32", "uint8"] = "float32"
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        return [np.transpose(inputs[0].reshape(self.shape), self.perm)]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        made = []
        for shape, perm in (((17, 16), (1, 0)), ((1, 3, 9, 7), (0, 2, 3, 1)), ((5, 2, 3), (0, 2, 1))):
            floats, codes = random.normal(size=shape).astype(np.float32), random.integers(0, 256, shape, np.uint8)
            name = f"permute {shape} by {perm}"
            made.append(Example(cls(name, shape, perm), (floats,)))
            made.append(Example(cls(f"{name} of codes", shape, perm, "uint8"), (codes,)))
        return made


@rewrite("transpose without data movement", stage="transposes", matches=TRANSPOSE)
def view(graph: Graph, node: Node, x: str) -> Outcome:
    """The same bytes: the axes longer than 1 keep their order."""
    shape = graph.values[x].memory_shape
    long = [axis for axis in node.perm(len(shape)) if shape[axis] > 1]
    if graph.values[x].bits is not None:
        return packed(x)
    if long != sorted(long):
        return "it moves elements"
    graph.replace_node(node, Node("View", [x], node.outputs, {}, node.name, INTERNAL))
    return True


@rewrite("transpose", stage="transposes", matches=TRANSPOSE)
def permute(graph: Graph, node: Node, x: str) -> Outcome:
    value = graph.values[x]
    dtype = value.memory_dtype
    if value.bits is not None:
        return packed(x)
    if dtype != "float32" and dtype != "uint8":
        return f"'{x}' is {dtype}; handled: float32, codes"
    operator = Permute(node.name, value.memory_shape, tuple(node.perm(len(value.shape))), dtype)  # type: ignore[arg-type]
    kernel_node(graph, node, operator, [x], None, "as-is")
    return True
