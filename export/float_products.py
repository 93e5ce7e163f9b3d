"""The products of a float ONNX file that can be quantized, each as a torch layer that holds its weights.

To take another operator, add a row to `_READERS`. What stays in float is listed with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from subbyte.dialect.graph import GraphView, attribute
from subbyte.dialect.known_operators import full_name
from subbyte.dialect.macs import MACS
from subbyte.dialect.walk import label_of, subgraphs

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class FloatProduct:
    """A node with constant weights: output = layer(input)."""

    node: onnx.NodeProto
    name: str
    layer: nn.Module


class _Stays(Exception):
    """The node stays in float; the message is the reason."""


def float_products(graph: GraphView) -> tuple[list[FloatProduct], dict[str, str]]:
    """The products in the order of the graph, and {name: reason} of those that stay in float."""
    found: list[FloatProduct] = []
    stay: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        if full_name(node) not in MACS:
            continue
        name = _unused(label_of(node).replace(".", "_").strip("/"), taken)
        try:
            if full_name(node) not in _READERS:
                raise _Stays(f"{full_name(node)} has no quantized form")
            found.append(FloatProduct(node, name, _READERS[full_name(node)](graph, node)))
        except _Stays as reason:
            stay[name] = str(reason)
    for inner in (node for body in subgraphs(graph.nodes) for node in body.node if full_name(node) in MACS):
        stay[_unused(label_of(inner), taken)] = "it is in the body of another node"
    return found, stay


def _unused(name: str, taken: set[str]) -> str:
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name}_{number}"
    taken.add(unused)
    return unused


def _constant(graph: GraphView, node: onnx.NodeProto, index: int, what: str) -> Array | None:
    """A float32 input of a node; None where it is left out."""
    if len(node.input) <= index or not node.input[index]:
        return None
    value = graph.constant(node.input[index])
    if value is None:
        raise _Stays(f"its {what} is not a constant of the file")
    if value.dtype != np.float32:
        raise _Stays(f"its {what} is {value.dtype}, not float32")
    return value


def _weight(graph: GraphView, node: onnx.NodeProto) -> Array:
    weight = _constant(graph, node, 1, "weight")
    if weight is None or not np.isfinite(weight).all():
        raise _Stays("its weight holds NaN or infinity")
    return weight


def _conv(graph: GraphView, node: onnx.NodeProto) -> nn.Module:
    weight, bias = _weight(graph, node), _constant(graph, node, 2, "bias")
    kinds: Mapping[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d}
    if weight.ndim not in kinds:
        raise _Stays(f"convolutions over {weight.ndim - 2} axes have no quantized form")
    groups = int(attribute(node, "group", 1))
    outputs, inputs = weight.shape[0], weight.shape[1] * groups
    layer = kinds[weight.ndim](inputs, outputs, weight.shape[2:], groups=groups, bias=bias is not None, device="meta")
    return _filled(layer, weight, bias)


def _matmul(graph: GraphView, node: onnx.NodeProto) -> nn.Module:
    weight = _weight(graph, node)
    if weight.ndim != 2:
        raise _Stays(f"its weight has {weight.ndim} axes, not [inputs, outputs]")
    return _linear(weight.T, None)


def _gemm(graph: GraphView, node: onnx.NodeProto) -> nn.Module:
    weight, bias = _weight(graph, node), _constant(graph, node, 2, "bias")
    if attribute(node, "transA", 0):
        raise _Stays("its input is transposed")
    weight = np.float32(attribute(node, "alpha", 1.0)) * (weight if attribute(node, "transB", 0) else weight.T)
    if bias is not None:
        if bias.size not in (1, len(weight)) or bias.shape[-1:] not in ((), (1,), (len(weight),)):
            raise _Stays(f"its bias has the shape {list(bias.shape)}, not that of the outputs")
        bias = np.broadcast_to(np.float32(attribute(node, "beta", 1.0)) * bias.reshape(-1), len(weight))
    return _linear(weight, bias)


def _linear(weight: Array, bias: Array | None) -> nn.Module:
    outputs, inputs = weight.shape
    return _filled(nn.Linear(inputs, outputs, bias=bias is not None, device="meta"), weight, bias)


def _filled(layer: Any, weight: Array, bias: Array | None) -> nn.Module:
    """The layer, made without memory, with these tensors."""
    layer.weight = nn.Parameter(torch.from_numpy(weight.copy()))
    if bias is not None:
        layer.bias = nn.Parameter(torch.from_numpy(bias.copy()))
    module: nn.Module = layer
    return module


_READERS: dict[str, Callable[[GraphView, onnx.NodeProto], nn.Module]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
