"""Pooling in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from subbyte.tvm_kernels.operators.epilogue import Epilogue, Scale, ToBits, ToCodes, ToFloat
from subbyte.tvm_kernels.operators.geometry import Conv2d
from subbyte.tvm_kernels.operators.operands import Array, Bits, Codes, Float, Tensors, constant
from subbyte.tvm_kernels.operators.operator import Example, Fused


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

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        windows = {
            "global": Conv2d(2, 5, 4, 37, 37, (5, 4), groups=37),
            "padded": Conv2d(1, 7, 6, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1), groups=5),
        }
        made, signed = [], Codes(-128, 127, 128)
        for name, window in windows.items():
            x = random.normal(-3, 1, (window.batch, window.height, window.width, window.channels)).astype(np.float32)
            codes = random.integers(0, 256, x.shape, np.uint8)
            stores = (ToFloat(), ToCodes(20.0, signed), ToBits(constant(0), Bits(window.channels)))
            mean = Epilogue((Scale(constant(0.05 / np.prod(window.kernel))),), stores)
            largest = Epilogue((), (ToCodes(1.0, signed), ToFloat()))
            made += [
                Example(cls(f"max of codes, {name}", "max", window, signed, largest), (codes,)),
                Example(cls(f"sum, {name}", "sum", window, signed, mean), (codes,)),
                Example(cls(f"max, {name}", "max", window, Float(), Epilogue()), (x,)),
                Example(cls(f"average, {name}", "average", window, Float(), Epilogue()), (x,), exact=False),
            ]
        return made
