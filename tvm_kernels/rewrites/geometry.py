"""For several rules: the geometry of ONNX windows and rows."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Node, Shape


def over_axes(x: Shape) -> str:
    """Why a window over other than 1 or 2 axes of [batch, channels, ...] is declined."""
    return f"its windows are over {len(x) - 2} axes; handled: 1 and 2"


def rows_and_channels(shape: Shape) -> tuple[int, int]:
    """The number of rows of a tensor, along its last axis, and of elements in each."""
    return prod(shape[:-1]), shape[-1]


def other_axis(node: Node, shape: Shape) -> str | None:
    """Why a node does not work along the last axis; None where it does."""
    axis = int(node.attributes.get("axis", -1))
    return None if axis % len(shape) == len(shape) - 1 else f"its axis is {axis} of {list(shape)}; handled: the last"


def conv_geometry(x: Shape, w: Shape, attributes: Mapping[str, Any], groups: int) -> ops.Conv2d | None:
    """The geometry of an ONNX window (rank 3 or 4, pads written out); w is [out, in / groups, kernel...]."""
    rank = len(x) - 2
    if rank not in (1, 2):
        return None
    kernel, stride, dilation, pads = (list(attributes[k]) for k in ("kernel_shape", "strides", "dilations", "pads"))
    height, width = (1, x[2]) if rank == 1 else (x[2], x[3])
    if rank == 1:
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
        pads = [0, pads[0], 0, pads[1]]
    return ops.Conv2d(
        batch=x[0],
        height=height,
        width=width,
        channels=x[1],
        out_channels=w[0],
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=(pads[0], pads[1], pads[2], pads[3]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
    )
