"""An epilogue on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.operands import Array, Tensors
from subbyte.tvm_kernels.operators.operator import Fused


@dataclass(frozen=True, eq=False)
class Elementwise(Fused):
    """An epilogue on its own: float32 [rows, channels] in, its stores out; for instance Quantize or Binarize."""

    rows: int
    channels: int
    epilogue: Epilogue
    inputs = 1
    macs = 0

    def resized(self, rows: int, channels: int) -> Elementwise:
        return replace(self, rows=rows, channels=channels)

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        return self.epilogue.reference(inputs[0].reshape(self.rows, self.channels), tensors)
