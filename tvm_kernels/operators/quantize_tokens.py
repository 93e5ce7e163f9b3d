"""Per-token dynamic quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.dialect.quantize_per_token import QuantizePerToken
from subbyte.formats.reference import quantize_per_token
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator
from subbyte.tvm_kernels.rewrites.geometry import rows_and_channels
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import Any, Op, Outcome
from subbyte.tvm_kernels.rewrites.register import rewrite


@dataclass(frozen=True, eq=False)
class QuantizeTokens(Operator):
    """Per-token dynamic quantization: float32 [rows, channels] to codes (zero point 128) and step float32 [rows, 1].

    Arithmetic of formats.reference.quantize_per_token.
    """

    rows: int
    channels: int
    inputs = 1
    macs = 0
    per_element = QuantizePerToken.energy

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        codes, step = quantize_per_token(inputs[0].reshape(self.rows, self.channels))
        return [(codes + 128).astype(np.uint8), step]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        x = random.normal(size=(5, 67)).astype(np.float32)
        x[1] = 0
        return [Example(cls("tokens", 5, 67), (x,))]


@rewrite("quantize per token", stage="products", matches=Op(QuantizePerToken, Any("x"), outputs=2))
def quantize_tokens(graph: Graph, node: Node, x: str) -> Outcome:
    shape = graph.values[x].shape
    made = kernel_node(graph, node, QuantizeTokens(node.name, *rows_and_channels(shape)), [x], -1, "as-is")
    if len(made.outputs) < 2 or not made.outputs[1]:
        step = graph.fresh(made.outputs[0])
        graph.add_value(step, "float32", (*shape[:-1], 1))
        graph.set_outputs(made, [made.outputs[0], step])
    return True
