"""im2col: windows as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from subbyte.formats import LowBitTensor
from subbyte.formats.energy import ELEMENTWISE
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import KERNEL
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


def unfolded_weight(tensor: LowBitTensor | None) -> tuple[Array, LowBitTensor] | None:
    """Weights whose groups cross the windows of channels, [out, in, kernel_h, kernel_w], for a product after im2col.

    Returns the order of `Unfold` and the weights of a 1x1 convolution of its rows. Groups are unchanged; inside each,
    where sums are integers, elements are in the memory order of a window, so that runs of them are copied at once. None
    for other weights.
    """
    if tensor is None or not tensor.group_size:
        return None
    channels, taps = tensor.shape[1], int(np.prod(tensor.shape[2:]))
    in_file = np.arange(tensor.depth)
    element = in_file % taps * channels + in_file // taps
    permuted = np.lexsort((element, in_file // tensor.group_size))
    rows = replace(tensor, payload=tensor.payload.take(permuted)).reshape((tensor.shape[0], 1, 1, tensor.depth))
    return element[permuted], rows


def windows_as_rows(graph: Graph, node: Node, codes: str, window: Conv2d, order: Array) -> str:
    """An Unfold of codes before a convolution; returns its output, in which a row is the channels axis of ONNX."""
    storage = graph.values[codes].codes
    assert storage is not None
    name = f"{node.name}:rows"
    shape = (window.batch, window.groups * window.depth, *graph.values[node.outputs[0]].shape[2:])
    unfold = Unfold(name, window, storage, order)
    rows = graph.emit("Unfold", [codes], shape, name, domain=KERNEL, operator=unfold, reads="NHWC", axis=1)
    graph.values[rows].storage = storage
    return rows
