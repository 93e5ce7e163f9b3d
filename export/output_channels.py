"""The output channels of a product, and the constants that broadcast along them and can be folded into its weight."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from subbyte.dialect.graph import GraphView, attribute

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OutputChannels:
    """How many there are, on which axis of a result of how many, and whether the weight has them first."""

    count: int
    axis: int
    rank: int
    first: bool

    @classmethod
    def of(cls, graph: GraphView, node: onnx.NodeProto, weight: Array) -> OutputChannels:
        """Those of a Conv, MatMul or Gemm with a constant weight."""
        first = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
        shape = graph.shape(node.output[0])
        rank = weight.ndim if node.op_type != "MatMul" else 1 if shape is None else len(shape)
        return cls(weight.shape[0 if first else -1], 1 if node.op_type == "Conv" else rank - 1, rank, first)

    def vector(self, operand: Array) -> Array | None:
        """A float32 constant that broadcasts along the channels alone, as float64 [count] or []; None for any other."""
        shape = (*[1] * (self.rank - operand.ndim), *operand.shape)
        others = [size for axis, size in enumerate(shape) if axis != self.axis]
        if operand.dtype != np.float32 or len(shape) > self.rank:
            return None
        if operand.size not in (1, self.count) or prod(others) != 1:
            return None
        return operand.astype(np.float64).reshape(-1 if operand.size > 1 else ())
