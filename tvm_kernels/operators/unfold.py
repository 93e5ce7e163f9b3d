"""im2col: windows as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.operators.geometry import Conv2d
from subbyte.tvm_kernels.operators.operands import Array, Codes, Tensors
from subbyte.tvm_kernels.operators.operator import Operator


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
