"""The layers of a file: each product with its operands and the epilogue up to the bias.

    codes -> [data movement] -> product(codes, weight) -> Round -> Mul (step, scale) -> Add (bias)

Any part may be missing: a float layer has no quantizer, a sum of floats no `Round`. docs/onnx-dialect.md, "A
quantized layer".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from subbyte.dialect.function import PackedWeights, function_of
from subbyte.dialect.graph import DATA_MOVEMENT, GraphView, attribute, moved_inputs

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
    activations: tuple[
        str, ...
    ]  # first operand before data movement, without integer constants such as the fill of Pad
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
        (weight,) = _sources(graph, node.input[1], _WEIGHT_MOVEMENT)
        scales, bias = _scales_and_bias(graph, epilogue, scaled=_is_low_bit(graph, weight))
        if len(node.input) > 2 and node.input[2] and node.op_type in ("Conv", "Gemm"):
            bias = (node.input[2], *bias)
        sources = _sources(graph, node.input[0], CODE_PRESERVING | {"Cast"})
        activations = tuple(name for name in sources if not _is_integer_constant(graph, name))
        yield Layer(node, activations, weight, epilogue, scales, bias)


def integer_sums(graph: GraphView) -> list[str]:
    """The values that are integer sums of products and averages: those that a `Round` reads."""
    producers = {node.input[0]: graph.producers.get(node.input[0]) for node in graph.nodes if _is_round(node)}
    return [name for name, node in producers.items() if node is not None and is_integer_product(graph, node)]


def is_integer_product(graph: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node is a sum of products of integers: exact in float32 below 2^24, and a Round does not change it."""
    return node.op_type in SUMS and not node.domain and sums_integers(node, partial(integer_valued, graph))


def sums_integers(node: onnx.NodeProto, is_integer: Callable[[str], bool]) -> bool:
    """Whether all terms of a sum of products are integers: its factors, its bias, and alpha and beta of Gemm."""
    terms = list(node.input[:1] if node.op_type == "ReduceSum" else node.input)
    scales = (attribute(node, name, 1.0) for name in ("alpha", "beta"))
    return all(float(scale).is_integer() for scale in scales) and all(is_integer(name) for name in terms if name)


def integer_valued(graph: GraphView, name: str) -> bool:
    """Whether all elements of a value, before data movement, are codes, levels or integer constants."""
    return all(
        _is_integer_constant(graph, source) or _is_integer_result(graph, source)
        for source in _sources(graph, name, CODE_PRESERVING)
    )


def copied_from(graph: GraphView, name: str) -> list[str]:
    """The values whose elements a value has unchanged: before data movement and maxima."""
    return _sources(graph, name, CODE_PRESERVING)


def _is_integer_constant(graph: GraphView, name: str) -> bool:
    constant = graph.constant(name)
    return constant is not None and bool(np.all(constant == np.rint(constant)))


def _is_integer_result(graph: GraphView, name: str) -> bool:
    node = graph.producers.get(name)
    function = None if node is None or node.output[0] != name else function_of(node)
    return function is not None and function.integers


def _sources(graph: GraphView, name: str, through: Iterable[str]) -> list[str]:
    """The values whose elements a value has, before the operators `through`."""
    found: list[str] = []
    waiting, seen = [name], {name}
    while waiting:
        name = waiting.pop(0)
        node = graph.producers.get(name)
        copied = node is not None and node.op_type in through and not node.domain
        if node is None or not copied or (name != node.output[0] and node.op_type != "Split"):
            found.append(name)
            continue
        new = [one for one in dict.fromkeys(moved_inputs(node)) if one not in seen]
        seen.update(new)
        waiting += new
    return found


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
