"""The layers of a file: each product with its operands and the epilogue up to the bias.

    codes -> [data movement] -> product(codes, weight) -> Round -> Mul (step, scale) -> Add (bias)

Any part may be missing: a float layer has no quantizer, a sum of floats no `Round`. docs/onnx-dialect.md, "A
quantized layer".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from subbyte.dialect.function import PackedWeights, function_of
from subbyte.dialect.graph import DATA_MOVEMENT, GraphView

PRODUCTS = ("Conv", "MatMul", "Gemm", "ConvInteger", "MatMulInteger")
SUMS = ("Conv", "MatMul", "ReduceSum")  # integer-valued when their operands are
CODE_PRESERVING = DATA_MOVEMENT | {"MaxPool"}  # their outputs are codes if their inputs are
_WEIGHT_MOVEMENT = ("Transpose", "Identity", "Reshape")


@dataclass(frozen=True, eq=False)
class EpilogueNode:
    """A Round, Mul or Add after a product: the only consumer of its first operand."""

    node: onnx.NodeProto
    value: str  # the input from the layer
    operand: str | None  # the other input, if it has one


@dataclass(frozen=True, eq=False)
class Layer:
    """One product, with two operands that may be quantized."""

    product: onnx.NodeProto
    activation: onnx.NodeProto | None  # producer of the first operand before data movement; None: input or constant
    weight: str  # second operand before data movement: an initializer, a decoder's output, or a run-time value
    epilogue: tuple[EpilogueNode, ...]  # ends with the first Add
    scales: tuple[str, ...]  # multiplied to its integer sum, or to the sum of its low-bit weights
    bias: tuple[str, ...]  # constants


def layers(graph: GraphView) -> Iterator[Layer]:
    """Every product of a graph, in the order of its nodes."""
    for node in graph.nodes:
        if node.op_type not in PRODUCTS or node.domain:
            continue
        epilogue = tuple(_epilogue(graph, node.output[0]))
        weight = _source(graph, node.input[1], _WEIGHT_MOVEMENT)
        scales, bias = _scales_and_bias(graph, epilogue, scaled=_is_low_bit(graph, weight))
        if len(node.input) > 2 and node.input[2] and node.op_type in ("Conv", "Gemm"):
            bias = (node.input[2], *bias)
        activation = origin(graph, node.input[0], CODE_PRESERVING | {"Cast"})
        yield Layer(node, activation, weight, epilogue, scales, bias)


def integer_sums(graph: GraphView) -> list[str]:
    """The values that are integer sums of products and averages: those that a `Round` reads."""
    producers = {node.input[0]: graph.producers.get(node.input[0]) for node in graph.nodes if _is_round(node)}
    return [name for name, node in producers.items() if node is not None and node.op_type in SUMS]


def integer_valued(graph: GraphView, name: str) -> bool:
    """Whether a value, before data movement, is codes, levels or an integer constant."""
    constant = graph.constant(name)
    if constant is not None:
        return bool(np.all(constant == np.rint(constant)))
    node = origin(graph, name, CODE_PRESERVING)
    function = None if node is None else function_of(node)
    return function is not None and function.integers


def origin(graph: GraphView, name: str, through: Iterable[str]) -> onnx.NodeProto | None:
    """The producer of a value before the operators `through`; None for an input or a constant."""
    return graph.producers.get(_source(graph, name, through))


def _source(graph: GraphView, name: str, through: Iterable[str]) -> str:
    node = graph.producers.get(name)
    while node is not None and node.op_type in through and not node.domain:
        name = node.input[0]
        node = graph.producers.get(name)
    return name


def _epilogue(graph: GraphView, value: str) -> Iterator[EpilogueNode]:
    while len(graph.consumers.get(value, [])) == 1:
        user = graph.consumers[value][0]
        if user.op_type not in ("Round", "Mul", "Add") or user.domain:
            return
        yield EpilogueNode(user, value, next((name for name in user.input if name != value), None))
        if user.op_type == "Add":
            return
        value = user.output[0]


def _scales_and_bias(
    graph: GraphView, epilogue: Iterable[EpilogueNode], scaled: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`scaled`: factors are scales even if no `Round` precedes them."""
    scales: list[str] = []
    for item in epilogue:
        if _is_round(item.node):
            scaled = True
        elif item.node.op_type == "Add":
            constant = item.operand is not None and graph.constant(item.operand) is not None
            return tuple(scales), (item.operand,) if constant and item.operand else ()
        elif not scaled:
            break
        elif item.operand is not None:
            scales.append(item.operand)
    return tuple(scales), ()


def _is_low_bit(graph: GraphView, weight: str) -> bool:
    node = graph.producers.get(weight)
    function = None if node is None else function_of(node)
    return function is not None and isinstance(function.role, PackedWeights)


def _is_round(node: onnx.NodeProto) -> bool:
    return node.op_type == "Round" and not node.domain
