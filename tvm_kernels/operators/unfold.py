"""im2col: windows as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.operators.geometry import Conv2d
from subbyte.tvm_kernels.operators.operands import Array, Codes, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Operator


@dataclass(frozen=True, eq=False)
class Unfold(Operator):
    """im2col of codes, a row for each window: uint8 [batch, out_height, out_width, groups * geometry.depth].

    Element `i` of a convolution group's row is element `order[i]` of its window, which is read as [kernel_h, kernel_w,
    channels / groups]. Padding is level 0. A 1x1 convolution of the rows is the convolution of the windows.
    """

    geometry: Conv2d  # out_channels is not used
    storage: Codes
    order: Array  # int [geometry.depth], a permutation
    inputs = 1
    macs = 0
    per_element = ELEMENTWISE

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        shape = self.geometry
        windows = shape.patches(inputs[0], self.storage.zero_point)
        pixels = (shape.batch, shape.out_height, shape.out_width)
        by_group = windows.reshape(*pixels, -1, shape.groups, shape.channels // shape.groups)
        rows = np.moveaxis(by_group, -2, -3).reshape(*pixels, shape.groups, shape.depth)
        return [rows[..., self.order].reshape(*pixels, -1)]

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        convolutions = {
            "padded": Conv2d(1, 5, 6, 3, 10, (3, 3), padding=(1, 1, 1, 1)),
            "uneven": Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
            "grouped": Conv2d(1, 7, 9, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
        }
        made = []
        for name, conv in convolutions.items():
            order = np.arange(conv.depth).reshape(-1, 3).T.reshape(-1)
            image = random.integers(0, 256, (conv.batch, conv.height, conv.width, conv.channels), np.uint8)
            made.append(Example(cls(f"unfold, {name}", conv, Codes(-37, 218, 37), order), (image,)))
        return made
