"""Softmax over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator
from subbyte.tvm_kernels.rewrites.geometry import other_axis, rows_and_channels
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import Any, Op, Outcome
from subbyte.tvm_kernels.rewrites.register import rewrite


@dataclass(frozen=True, eq=False)
class Softmax(Operator):
    """float32 softmax over the last axis of [rows, channels]; the reference computes in float64 and rounds once."""

    rows: int
    channels: int
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        x = inputs[0].reshape(self.rows, self.channels).astype(np.float64)
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        return [(powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        return [Example(cls("softmax", 5, 67), (random.normal(0, 10, (5, 67)).astype(np.float32),), exact=False)]


@rewrite("softmax", stage="products", matches=Op("Softmax", Any("x"), attributes=("axis",)))
def softmax(graph: Graph, node: Node, x: str) -> Outcome:
    shape = graph.values[x].shape
    if (why := other_axis(node, shape)) is not None:
        return why
    kernel_node(graph, node, Softmax(node.name, *rows_and_channels(shape)), [x], -1, "as-is")
    return True
