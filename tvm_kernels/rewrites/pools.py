"""Pools and sums of codes.

ReduceSum of codes, depthwise Conv with ones  ->  Pool2d `sum`, exact; an average is a Scale after it
MaxPool, AveragePool, Global...               ->  Pool2d of floats
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape
from subbyte.tvm_kernels.rewrites.code_values import packed
from subbyte.tvm_kernels.rewrites.geometry import conv_geometry, over_axes
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import WINDOW, Any, Coded, Const, Op, Outcome, Rule, rule

WINDOWS_HANDLED = "kernels have windows over 1 or 2 axes, all of which are inside the padded input"


def _same_size(geometry: ops.Conv2d, y: Shape) -> bool:
    """Whether the geometry has the output shape that ONNX inferred (ceil_mode may differ)."""
    spatial = (geometry.out_height, geometry.out_width)
    return spatial == ((1, y[2]) if len(y) == 3 else (y[2], y[3]))


def sum_of_codes(graph: Graph, node: Node, codes: str, **_: object) -> Outcome:
    """ReduceSum of codes over consecutive axes: Pool2d with one window for each index of the other axes."""
    value = graph.values[codes]
    storage = value.codes
    if storage is None:
        return packed(codes)
    axes = graph.constant_of(node.given(1))
    if axes is None:
        return "its axes are left out, or made at run time"
    rank = len(value.shape)
    over = sorted(int(a) % rank for a in axes.reshape(-1))
    if not over or over != list(range(over[0], over[0] + len(over))) or over[0] == 0:
        return f"it sums over axes {over} of {list(value.shape)}; handled: neighbours, and not the first"
    batch = int(np.prod(value.shape[: over[0]], dtype=np.int64))
    length = int(np.prod([value.shape[a] for a in over], dtype=np.int64))
    after = int(np.prod(value.shape[over[-1] + 1 :], dtype=np.int64))
    if over == list(range(2, rank)):  # NCHW: channels are axis 1
        batch, after, reads, axis = value.shape[0], value.shape[1], "NHWC", 1
    elif over[-1] == rank - 1:
        return f"it sums over axes {over} of {list(value.shape)}; handled: the last one with all spatial axes"
    else:
        reads, axis = "as-is", -1
    kept = len(graph.values[node.outputs[0]].shape) == rank
    window = ops.Conv2d(batch, length, 1, after, after, (length, 1), groups=after)
    operator = ops.Pool2d(node.name, "sum", window, storage, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], axis if kept else -1, reads)
    return True


def ones_conv_of_codes(graph: Graph, node: Node, codes: str, w: Array) -> Outcome:
    """A depthwise convolution of codes with weights of 1 is a sum over windows."""
    value = graph.values[codes]
    groups = int(node.attributes.get("group", 1))
    storage = value.codes
    if storage is None:
        return packed(codes)
    if groups != value.shape[1] or w.shape[0] != groups or not (w == 1).all():
        return "its weights are not all 1, or it is not depthwise: not a sum over windows"
    geometry = conv_geometry(value.shape, w.shape, node.attributes, groups)
    if geometry is None:
        return over_axes(w.shape)
    operator = ops.Pool2d(node.name, "sum", geometry, storage, ops.Epilogue())
    kernel_node(graph, node, operator, [codes], 1, "NHWC")
    return True


def pool_window(graph: Graph, node: Node, x: str) -> ops.Conv2d | None:
    """The windows of a pool with explicit pads; None where their output shape is not that which ONNX inferred."""
    value, y = graph.values[x], graph.values[node.outputs[0]].shape
    attributes = dict(node.attributes)
    if node.op.startswith("Global"):
        spatial = list(value.shape[2:])
        ones = [1] * len(spatial)
        attributes = {"kernel_shape": spatial, "strides": ones, "dilations": ones, "pads": [0] * 2 * len(spatial)}
    channels = value.shape[1]
    geometry = conv_geometry(value.shape, (channels,), attributes, channels)
    return geometry if geometry is not None and _same_size(geometry, y) else None


def pool(function: Literal["max", "average"]) -> Callable[..., Outcome]:
    def to(graph: Graph, node: Node, x: str) -> Outcome:
        geometry = pool_window(graph, node, x)
        if geometry is None:
            return WINDOWS_HANDLED
        attributes = node.attributes
        counts = bool(attributes.get("count_include_pad", 0))
        operator = ops.Pool2d(node.name, function, geometry, ops.Float(), ops.Epilogue(), counts)
        kernel_node(graph, node, operator, [x], 1, "NHWC")
        return True

    return to


RULES: list[Rule] = [
    # ---- of codes ----
    rule("sum of codes", Op("ReduceSum", Coded("codes"), rest=True, attributes=("keepdims",)), to=sum_of_codes),
    rule("sum of codes by windows", Op("Conv", Coded("codes"), Const("w"), attributes=WINDOW), to=ones_conv_of_codes),
    # ---- of floats ----
    rule("max pool", Op("MaxPool", Any("x"), attributes=(*WINDOW, "storage_order")), to=pool("max")),
    rule("average pool", Op("AveragePool", Any("x"), attributes=(*WINDOW, "count_include_pad")), to=pool("average")),
    rule("global average pool", Op("GlobalAveragePool", Any("x")), to=pool("average")),
    rule("global max pool", Op("GlobalMaxPool", Any("x")), to=pool("max")),
]
