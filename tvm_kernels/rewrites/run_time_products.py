"""Products of two run-time tensors: attention scores and their product with the values.

MatMul(Mul(codes, step), Mul(codes, step))   ->  Mul(MatMul(codes, codes), step x step)
MatMulInteger                                ->  Cast(MatMul(levels, levels)), of constants too, where sums are float32
MatMul(codes, codes)                         ->  Product of Codes
MatMul(bits, Transpose(bits))                ->  Product of Bits: depth - 2 popcount(left xor right)
MatMul(float, float)                         ->  Product of Float

The kernel reads the right matrices transposed: a Transpose of their two axes is removed from the graph, or from a
Transpose of more axes.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from subbyte.errors import FormatError
from subbyte.formats.reference import check_accumulator
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Array, Graph, Node, Shape, Value
from subbyte.tvm_kernels.rewrites.canonical_form import after
from subbyte.tvm_kernels.rewrites.code_values import (
    INT32,
    binary_to_codes,
    codes_of,
    to_codes,
    to_float,
    view_as_levels,
)
from subbyte.tvm_kernels.rewrites.foreign import weight_of
from subbyte.tvm_kernels.rewrites.kernel_node import kernel_node
from subbyte.tvm_kernels.rewrites.pattern import EVERY, LEVELS, Any, Coded, Const, Op, Outcome, Rule, decline, rule

STEPS_AFTER_PRODUCT = "steps after a product of two tensors"
INTEGERS, FLOAT, FLOAT32_INTEGERS = "integers of 8 bits", 1, 1 << 24
CODES, BITS = "product of two tensors of codes", "product of two binary tensors"


def matrices(a: Shape, b: Shape) -> ops.MatMul | str:
    """The matrices of [..., rows, depth] x [..., depth, columns], or the reason why they are not handled."""
    if min(len(a), len(b)) > 1:
        if a[:-2] == b[:-2]:
            return ops.MatMul(a[-2], a[-1], b[-1], prod(a[:-2]), False)
        if len(b) <= len(a) and prod(b[:-2]) == 1:  # one right matrix: all rows at once
            return ops.MatMul(prod(a[:-1]), a[-1], b[-1], 1, False)
    handled = "matrices with the same leading axes, or one right matrix"
    return f"its operands are {list(a)} and {list(b)}; handled: {handled}"


def beyond_int32(graph: Graph, left: str, right: str) -> str | None:
    """Why the sums of products of two coded values are not computed in integers."""
    a, b = graph.values[left], graph.values[right]
    try:
        check_accumulator(a.shape[-1], int(a.storage.largest), int(b.storage.largest))
    except FormatError as error:
        return str(error)
    return None


# ---- steps ----


def steps_after_product(
    graph: Graph, node: Node, left: str, right: str, left_step: Array | None = None, right_step: Array | None = None
) -> Outcome:
    """Levels are multiplied as integers, and the sum by the steps of both, one for each tensor."""
    steps = [step for step in (left_step, right_step) if step is not None]
    if any(step.size != 1 for step in steps):
        return "an operand has a step for each index of an axis; handled: one step for all"
    found = matrices(graph.values[left].shape, graph.values[right].shape)
    if isinstance(found, str) or (beyond := beyond_int32(graph, left, right)):
        return found if isinstance(found, str) else beyond
    factor = np.float32(np.prod([step.astype(np.float64).reshape(()) for step in steps]))
    graph.set_inputs(node, [left, right])
    after(graph, node, "Mul", graph.constant(factor.reshape(1)))
    return True


# ---- MatMulInteger ----


def matmul_integer(graph: Graph, node: Node, left: str, right: str, **_: object) -> Outcome:
    """The integer output is stored as float32: exact where no sum can exceed 2^24."""
    zeros = [graph.constant_of(name) if name else np.zeros((), np.int32) for name in (*node.inputs[2:], "", "")[:2]]
    a, b = graph.values[left], graph.values[right]
    storages = []
    for value, zero in zip((a, b), zeros, strict=True):
        if zero is None or zero.size != 1:
            return "its zero points are made at run time, or by channel; handled: one constant for each operand"
        storage = codes_of(value.dtype, int(zero.reshape(-1)[0]))
        if storage is None or (value.is_constant and (value is a or len(b.shape) != 2)):
            handled = "8 bits, made at run time or a right matrix of constants"
            return f"its operand '{value.name}' is {value.dtype} {list(value.shape)}; handled: {handled}"
        storages.append(storage)
    geometry = matrices(a.shape, b.shape)
    if isinstance(geometry, str):
        return geometry
    if geometry.depth * storages[0].largest * storages[1].largest > FLOAT32_INTEGERS:
        return f"sums of {geometry.depth} products can pass 2^24, beyond which float32 lacks integers"
    levels = [_levels(graph, value, zero, node) for value, zero in zip((a, b), zeros, strict=True) if zero is not None]
    output = graph.values[node.outputs[0]]
    total = graph.emit("MatMul", levels, output.shape, output.name, node)
    for user in graph.users(output.name):
        if user.op == "Cast" and user.attributes.get("to") == FLOAT:
            graph.replace_node(user, Node("Identity", [total], user.outputs, {}, user.name))
    graph.replace_node(node, Node("Cast", [total], node.outputs, {"to": INT32}, node.name))
    return True


def _levels(graph: Graph, value: Value, zero: Array, node: Node) -> str:
    """code - zero in float32, as a view of the same bytes; of constants, as low-bit weights."""
    if value.data is None:
        codes = value.name if value.coded else to_codes(graph, value.name, node)
        return view_as_levels(graph, codes, int(zero.reshape(-1)[0]), node)
    weight = weight_of(value.data, np.ones((), np.float32), zero.astype(np.int32), 1, value.declared or value.dtype)
    return graph.weight(*weight, False, value.name)


# ---- products ----


def read_transposed(graph: Graph, right: str, geometry: ops.MatMul) -> tuple[str, ops.MatMul]:
    """The right operand without the Transpose of its last two axes, if it has one, and the geometry to read it."""
    transpose = graph.producer(right)
    if transpose is None or transpose.op != "Transpose" or transpose.operator is not None:
        return right, geometry
    source, rank = graph.values[transpose.inputs[0]], len(graph.values[right].shape)
    perm = transpose.perm(rank)
    # y = x^T read as [.., columns, depth]: the rest of the permutation does not change the last axis.
    rest = [*perm[:-2], perm[-1], perm[-2]]
    if rest[-1] != rank - 1:
        return right, geometry
    right = source.name
    if rest != list(range(rank)):
        shape = [source.shape[i] for i in rest]
        right = graph.emit("Transpose", [right], shape, right, transpose, attributes={"perm": rest})
        graph.values[right].storage = source.storage
    return right, replace(geometry, transposed=True)


def of_floats(graph: Graph, node: Node, left: str, right: str) -> Outcome:
    geometry = matrices(graph.values[left].shape, graph.values[right].shape)
    if isinstance(geometry, str):
        return geometry
    right, geometry = read_transposed(graph, right, geometry)
    operator = ops.Product(node.name, ops.Float(), ops.Float(), geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [left, right], -1, "as-is")
    return True


def of_codes(graph: Graph, node: Node, left: str, right: str) -> Outcome:
    """Bits are converted to codes where the other operand is codes, or if they are not packed along the reduction."""
    geometry = matrices(graph.values[left].shape, graph.values[right].shape)
    if isinstance(geometry, str) or (beyond := beyond_int32(graph, left, right)):
        return geometry if isinstance(geometry, str) else beyond
    for name in (left, right):
        if graph.values[name].bits is not None:
            decline(graph, node, BITS, f"'{name}' is multiplied with codes, or is packed across the reduction")
            graph.replace_uses(name, binary_to_codes(graph, to_float(graph, name, node), node), [node])
            return True
    right, geometry = read_transposed(graph, right, geometry)
    a, b = graph.values[left].codes, graph.values[right].codes
    assert a is not None
    assert b is not None
    operator = ops.Product(node.name, a, b, geometry, ops.Epilogue())
    kernel_node(graph, node, operator, [left, right], -1, "as-is")
    return True


def of_bits(graph: Graph, node: Node, left: str, right: str, transpose: Node) -> Outcome:
    """Bits packed along the reduction on both sides; the input of a Transpose of other axes is converted to codes."""
    a, b, result = graph.values[left], graph.values[right], graph.values[transpose.outputs[0]]
    geometry = matrices(a.shape, result.shape)
    if isinstance(geometry, str):
        return geometry
    if b.bits is None:
        return None  # codes: another rule rewrites their Transpose
    rank = len(b.shape)
    exchanged = transpose.perm(rank) == [*range(rank - 2), rank - 1, rank - 2]
    if a.bits is None or not exchanged or {a.bits.channels, b.bits.channels} != {geometry.depth}:
        decline(graph, node, BITS, f"'{left}' and '{right}' are not both binary values packed along the reduction")
        codes = binary_to_codes(graph, to_float(graph, right, node), node)
        copy = graph.emit("Transpose", [codes], result.shape, codes, transpose, attributes=dict(transpose.attributes))
        graph.values[copy].storage = graph.values[codes].storage
        graph.set_inputs(node, [left, copy])
        return True
    operator = ops.Product(node.name, a.bits, b.bits, replace(geometry, transposed=True), ops.Epilogue())
    kernel_node(graph, node, operator, [left, right], -1, "as-is")
    return True


_LEFT, _RIGHT = Op("Mul", Coded("left"), Const("left_step")), Op("Mul", Coded("right"), Const("right_step"))
_TRANSPOSED = Op("Transpose", Coded("right"), key="transpose", dtypes=LEVELS, attributes=("perm",))

STEPS: list[Rule] = [
    rule(STEPS_AFTER_PRODUCT, Op("MatMul", left, right), to=steps_after_product)
    for left, right in ((_LEFT, _RIGHT), (_LEFT, Coded("right")), (Coded("left"), _RIGHT))
] + [
    rule(
        INTEGERS,
        Op("MatMulInteger", Any("left"), Any("right", constants=True), rest=True, dtypes=EVERY),
        to=matmul_integer,
    ),
]
RULES: list[Rule] = [
    rule(BITS, Op("MatMul", Coded("left"), _TRANSPOSED), to=of_bits),
    rule(CODES, Op("MatMul", Coded("left"), Coded("right")), to=of_codes),
    rule("product of two tensors", Op("MatMul", Any("left"), Any("right")), to=of_floats),
]
