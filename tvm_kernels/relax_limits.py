"""The variants that TVM's importer computes correctly, for operators that it does not support in all variants.

TVM converts by operator type; its converters ignore attributes, dtypes and outputs that they do not support. A row
states the supported variants; any other node is replaced by its schema's body, or refused. To add a row:

    "IsInf": Limit(attributes={"detect_negative": (1,), "detect_positive": (1,)}),
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm.relax.frontend.onnx import onnx_frontend

from subbyte.dialect.exactness import INTEGER_PRODUCTS
from subbyte.errors import CompileError
from subbyte.tvm_kernels import recurrent, relax_converters
from subbyte.tvm_kernels.graph import Array, Graph, Node
from subbyte.tvm_kernels.rewrites.pattern import other_than_default


@dataclass(frozen=True)
class Limit:
    """The supported variants: dtypes of inputs and outputs (None: any), values of attributes besides the default, used
    outputs (None: all); and `other`, which returns anything else of a node that is not handled, or an empty string.

    `body`: whether the body of the schema may replace an unsupported variant.
    """

    dtypes: Collection[str] | None = None
    indices: Collection[int] = ()  # inputs that are axes or the like, of a dtype of their own
    attributes: Mapping[str, Collection[Any]] = field(default_factory=dict)
    outputs: int | None = None
    other: Callable[[Graph, Node], str] | None = None
    body: bool = True

    def beyond(self, graph: Graph, node: Node) -> str:
        """What the node has that is not handled; empty where there is nothing."""
        values = [name for index, name in enumerate(node.inputs) if index not in self.indices]
        for name in (*values, *node.outputs):
            dtype = graph.values[name].dtype if name else ""
            if dtype and self.dtypes is not None and dtype not in self.dtypes:
                return f"'{name}' is {dtype}; handled: {', '.join(self.dtypes)}"
        for name, value in other_than_default(graph, node).items():
            if name in self.attributes and value not in self.attributes[name]:
                handled = ", ".join(map(str, self.attributes[name])) or "its default"
                return f"its attribute {name} is {value}; handled: {handled}"
        for name in node.outputs[self.outputs :] if self.outputs is not None else ():
            if name and (graph.users(name) or name in graph.outputs):
                return f"its output '{name}' is used; handled: the first {self.outputs}"
        return self.other(graph, node) if self.other is not None else ""


def never(reason: str) -> Limit:
    """An operator that TVM's converter computes correctly in no variant."""
    return Limit(other=lambda graph, node: reason)


def refuse_unrounded(graph: Graph, node: Node) -> None:
    """Raise CompileError for a node that makes or reads, at run time, a float type that TVM does not round to."""
    for name in (*node.outputs, *node.inputs):
        value = graph.values[name] if name else None
        if value is not None and value.data is None and value.dtype.startswith(UNROUNDED):
            raise CompileError(
                f"'{node.name}' ({node.op}): '{name}' is {value.dtype} at run time; only constants may be: "
                "Cast to float32 in the model instead"
            )


def beyond(graph: Graph, node: Node) -> str:
    """What TVM computes wrongly of a node; empty if nothing, or if `relax_converters` has a converter."""
    limit = None if node.domain else LIMITS.get(node.op)
    if limit is not None and (reason := limit.beyond(graph, node)):
        return reason
    ours = (node.domain, node.op) in relax_converters.CONVERTERS
    if not ours and (node.domain or node.op not in onnx_frontend._get_convert_map()):
        to_do = "; quantize with QuantFormat.QDQ, whose products kernels serve" if node.op in INTEGER_PRODUCTS else ""
        return f"neither a kernel nor TVM can run this operator{to_do}"
    return ""


def has_body(node: Node) -> bool:
    """Whether the body of its schema, if it has one, computes a node that TVM does not."""
    return not node.domain and (node.op not in LIMITS or LIMITS[node.op].body)


# ---- variants that depend on more than one attribute ----


def _constant(graph: Graph, node: Node, index: int) -> Array | None:
    return graph.constant_of(node.given(index))


def _of_integers(graph: Graph, node: Node) -> bool:
    return np.dtype(graph.values[node.inputs[0]].dtype).kind in "iu"


def _factors(graph: Graph, node: Node) -> str:
    """TVM converts the factors to integers before it multiplies integers by them."""
    for name in ("alpha", "beta") if _of_integers(graph, node) else ():
        value = float(node.attributes.get(name, 1.0))
        if not value.is_integer():
            return f"its {name} is {value:.7g}, of integers; handled: whole numbers"
    return ""


def _shrink(graph: Graph, node: Node) -> str:
    """TVM converts the constants to integers, as does the body, unlike other engines; unsigned types lack -lambd."""
    dtype = graph.values[node.inputs[0]].dtype
    if dtype.startswith("uint"):
        return f"'{node.inputs[0]}' is {dtype}; handled: signed types"
    bias, bound = float(node.attributes.get("bias", 0.0)), float(node.attributes.get("lambd", 0.5))
    if _of_integers(graph, node) and not (bias.is_integer() and bound >= 0):
        return (
            f"its bias is {bias:.7g}, its lambd {bound:.7g}, of integers; handled: whole biases, a lambd of 0 or more"
        )
    return ""


def _grid_sample(graph: Graph, node: Node) -> str:
    if _of_integers(graph, node) and node.attributes.get("mode") != "nearest":
        return f"it interpolates {graph.values[node.inputs[0]].dtype}; handled: float32, float64, or the mode nearest"
    return ""


def _resize(graph: Graph, node: Node) -> str:
    x, y = graph.values[node.inputs[0]].shape, graph.values[node.outputs[0]].shape
    if _of_integers(graph, node) and node.attributes.get("mode") == "cubic":
        return f"it is cubic, of {graph.values[node.inputs[0]].dtype}; handled: float32, float64"
    scales = _constant(graph, node, 2)
    if x[:2] != y[:2] or len(x) not in (3, 4, 5):
        return f"it goes from {list(x)} to {list(y)}; handled: one to three axes after batch and channels"
    if scales is not None and scales.size:
        whole = [size * float(scale) for size, scale in zip(x, np.float32(scales), strict=False)]
        if len(whole) != len(x) or whole != [float(size) for size in y]:
            return f"its scales {np.float32(scales).tolist()} make no whole sizes of {list(x)}; handled: those that do"
    return ""


def _dropout(graph: Graph, node: Node) -> str:
    training = _constant(graph, node, 2)
    ratio = _constant(graph, node, 1)
    whole = training is None and len(node.inputs) < 3
    if whole or (training is not None and not training.any()) or (ratio is not None and not ratio.any()):
        return ""
    return "it is in training mode, where its result is random"


def _pad(graph: Graph, node: Node) -> str:
    fill = node.given(2)
    if fill and graph.constant_of(fill) is None:
        return f"its fill '{fill}' is made at run time; handled: constants"
    return ""


def _recurrent(graph: Graph, node: Node) -> str:
    return recurrent.unsupported(node.op, node.attributes, graph.values[node.inputs[0]].shape[0])


def _max_unpool(graph: Graph, node: Node) -> str:
    return "its output_shape is given; handled: the shape that its windows give" if len(node.inputs) > 2 else ""


# What TVM casts there and back keeps float32's digits; 8-bit and 4-bit floats it cannot generate code for.
UNROUNDED = ("bfloat16", "float8", "float4")
FLOATS = ("float32", "float64")  # precision.py leaves no float16
LIMITS: dict[str, Limit] = {
    "Attention": never("TVM looks at none of its attributes"),
    "LayerNormalization": Limit(dtypes=("float32",), attributes={"stash_type": ()}, outputs=1),
    **dict.fromkeys(("Elu", "Selu", "ThresholdedRelu", "LRN"), Limit(dtypes=("float32",))),
    "ReduceMean": Limit(dtypes=FLOATS, indices=(1,)),
    "Gemm": Limit(other=_factors),
    "GridSample": Limit(other=_grid_sample),
    "Shrink": Limit(other=_shrink, body=False),
    "BatchNormalization": Limit(attributes={"training_mode": ()}, outputs=1),
    "ConvTranspose": Limit(attributes={"output_shape": ()}),
    "SpaceToDepth": Limit(attributes={"mode": ()}),
    "IsInf": Limit(attributes={"detect_negative": (), "detect_positive": ()}),
    "MaxPool": Limit(attributes={"storage_order": ()}, outputs=1),
    "MaxUnpool": Limit(other=_max_unpool),
    "Dropout": Limit(other=_dropout),
    "LpPool": Limit(attributes={"auto_pad": (), "ceil_mode": (), "dilations": (), "pads": (), "strides": ()}),
    **dict.fromkeys(recurrent.CELLS, Limit(other=_recurrent)),
    "RoiAlign": Limit(attributes={"mode": ("avg",)}),
    # Without axes each element is reduced by itself: its magnitude, square or logarithm, where TVM hands it on.
    **dict.fromkeys(("ReduceL1", "ReduceSumSquare"), Limit(attributes={"noop_with_empty_axes": ()})),
    **dict.fromkeys(
        ("ReduceL2", "ReduceLogSum"), Limit(dtypes=FLOATS, indices=(1,), attributes={"noop_with_empty_axes": ()})
    ),
    "Pad": Limit(other=_pad),
    **dict.fromkeys(("Pow", "PRelu"), Limit(dtypes=FLOATS)),
    "Resize": Limit(
        attributes={"antialias": (), "keep_aspect_ratio_policy": (), "axes": ()},
        other=_resize,
    ),
}
