"""Layer normalization over the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Fused
from subbyte.tvm_kernels.rewrites.geometry import other_axis, rows_and_channels
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import Any, Const, Op, Outcome
from subbyte.tvm_kernels.rewrites.register import rewrite


@dataclass(frozen=True, eq=False)
class LayerNorm(Fused):
    """float32 (x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, then the epilogue.

    The reference computes in float64 and rounds before the epilogue.
    """

    rows: int
    channels: int
    epsilon: float
    gamma: Array
    beta: Array
    epilogue: Epilogue
    inputs = 1
    macs = 0

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        x = inputs[0].reshape(self.rows, self.channels).astype(np.float64)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + self.epsilon) * self.gamma.astype(np.float64) + self.beta.astype(np.float64)
        return self.epilogue.reference(y, tensors)

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        gamma, beta = random.normal(size=(2, 67)).astype(np.float32)
        x = random.normal(1, 3, (5, 67)).astype(np.float32)
        return [Example(cls("layer norm", 5, 67, 1e-6, gamma, beta, Epilogue()), (x,), exact=False)]


@rewrite(
    "layer norm",
    stage="products",
    matches=Op("LayerNormalization", Any("x"), Const("gamma"), rest=True, attributes=("axis", "epsilon")),
)
def layer_norm(graph: Graph, node: Node, x: str, gamma: Array) -> Outcome:
    shape = graph.values[x].shape
    if (why := other_axis(node, shape)) is not None:
        return why
    beta = graph.constant_of(node.given(2)) if node.given(2) else np.zeros(1, np.float32)
    if beta is None:
        return "its bias is computed at run time"
    rows, channels = rows_and_channels(shape)
    gamma, beta = (np.broadcast_to(v.astype(np.float32).reshape(-1), (channels,)).copy() for v in (gamma, beta))
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    operator = LayerNorm(node.name, rows, channels, epsilon, gamma, beta, Epilogue())
    kernel_node(graph, node, operator, [x], -1, "as-is")
    return True
