"""Pooling in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from subbyte.tvm_kernels.operators.epilogue import Epilogue
from subbyte.tvm_kernels.operators.geometry import Conv2d
from subbyte.tvm_kernels.operators.operands import Array, Codes, Float, Tensors
from subbyte.tvm_kernels.operators.operator import Fused


@dataclass(frozen=True, eq=False)
class Pool2d(Fused):
    """Pooling, channels last.

    `sum` adds integer levels of codes exactly, before the epilogue (for an average, a Scale); `max` takes codes,
    exactly, or float32; `average` takes float32.
    """

    function: Literal["sum", "max", "average"]
    geometry: Conv2d  # groups == channels == out_channels
    activation: Codes | Float
    epilogue: Epilogue
    count_padding: bool = False  # `average`: divide by the size of the window, padding included
    inputs = 1
    macs = 0

    @property
    def sums_are_exact(self) -> bool:
        return self.function == "sum"

    def resized(self, rows: int, channels: int) -> Pool2d:
        return replace(self, geometry=Conv2d(1, rows, 1, channels, channels, (1, 1), groups=channels))

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        shape = self.geometry
        values = self.activation.levels(inputs[0]).astype(np.float64)
        windows = shape.patches(values, -np.inf if self.function == "max" else 0)
        if self.function == "max":
            return self.epilogue.reference(windows.max(axis=(3, 4)), tensors)
        sums = windows.sum(axis=(3, 4))
        if self.function == "average":
            inside = np.ones((shape.batch, shape.height, shape.width, shape.channels))
            sums = sums / shape.patches(inside, 1 if self.count_padding else 0).sum(axis=(3, 4))
        return self.epilogue.reference(sums, tensors)
