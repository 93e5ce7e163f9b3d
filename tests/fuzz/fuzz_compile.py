"""Small graphs by a grammar, compiled and run: right ones must be right, spoilt ones right or refused.

A production takes a value [1, channels, height, width] and gives another. Those of random_graphs.py make our dialect;
those below make floats, QDQ, and what moves, joins or compares elements. A spoilt graph is a right one in which
anything in the message is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from corruption import Rng, pick
from engines import Case, judged
from fuzz_onnx import change
from onnx import TensorProto
from random_graphs import LAYERS, Made, Network

Shape = tuple[int, int, int]
MOST_ELEMENTS = 1 << 16  # of an input of a spoilt graph that other engines are asked about


def prepare(folder: Path) -> None:
    """Nothing is needed."""


def case(state: None, rng: Rng, folder: Path) -> str:
    """A graph, right or spoilt, compiled and run beside other engines."""
    model = network(rng)
    spoilt = rng.random() < 0.5
    if spoilt:
        for _ in range(int(rng.integers(1, 3))):
            change(model, rng)
    word = judged(Case(model, _inputs(model, rng), "spoilt" if spoilt else "as made"), folder)
    return f"{word}, spoilt" if spoilt else word


def _inputs(model: onnx.ModelProto, rng: Rng) -> dict[str, np.ndarray]:
    """Numbers for every input whose shape is known and small."""
    found = {}
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        small = all(0 <= n <= MOST_ELEMENTS for n in shape) and np.prod(shape, dtype=float) <= MOST_ELEMENTS
        if small and value.name not in constants:
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def network(rng: Rng) -> onnx.ModelProto:
    """One to six productions; the last value and a few others are outputs."""
    n = Network(int(rng.integers(1 << 31)))
    for _ in range(int(n.rng.integers(1, 7))):
        x, shape = n.values[-int(n.rng.integers(1, min(3, len(n.values)) + 1))]
        if np.prod(shape) <= 4096:
            n.values.append(pick(n.rng, PRODUCTIONS)(n, x, shape))
    made = [name for name, _ in n.values[1:]]
    return n.b.model(made[-1], *[name for name in made[:-1] if n.rng.random() < 0.2])


# ---- productions ----


def _unary(n: Network, x: str, shape: Shape) -> Made:
    op = pick(
        n.rng, ("Sigmoid", "Tanh", "Neg", "Abs", "Erf", "Floor", "Softmax", "HardSwish", "Elu", "Softplus", "Gelu")
    )
    if op == "Softmax":
        return n.b.node(op, x, axis=int(n.rng.integers(1, 4))), shape
    return n.b.node(op, x), shape


def _bounded(n: Network, x: str, shape: Shape) -> Made:
    low, high = n.b.constant(-float(n.rng.integers(0, 3))), n.b.constant(float(n.rng.integers(1, 7)))
    return n.b.node("Clip", x, low, high), shape


def _float_conv(n: Network, x: str, shape: Shape) -> Made:
    channels, height, width = shape
    group = int(n.one_of(1, channels))
    out = channels if group > 1 else int(n.rng.integers(1, 9))
    kernel = int(n.one_of(1, 3))
    weight = n.b.constant(n.rng.standard_normal((out, channels // group, kernel, kernel)) / 3)
    return n.b.node("Conv", x, weight, pads=[kernel // 2] * 4, group=group), (out, height, width)


def _qdq(n: Network, x: str, shape: Shape) -> Made:
    dtype, zero = n.one_of((np.uint8, 128), (np.uint8, 0), (np.int8, 0), (np.int8, -7))
    limits = (n.b.constant(float(n.one_of(0.05, 0.125, 0.02))), n.b.constant(zero, dtype))
    return n.b.node("DequantizeLinear", n.b.node("QuantizeLinear", x, *limits), *limits), shape


def _qdq_conv(n: Network, x: str, shape: Shape) -> Made:
    channels, height, width = shape
    codes, _ = _qdq(n, x, shape)
    out = int(n.rng.integers(1, 9))
    weight = n.b.constant(n.rng.integers(-127, 128, (out, channels, 3, 3)), np.int8)
    scale, zero = n.b.uniform(out, low=0.001, high=0.01), n.b.constant(np.zeros(out), np.int8)
    y = n.b.node("Conv", codes, n.b.node("DequantizeLinear", weight, scale, zero, axis=0), pads=[1] * 4)
    return _qdq(n, y, (out, height, width))


def _dense(n: Network, x: str, shape: Shape) -> Made:
    columns = int(n.rng.integers(1, 9))
    y = n.b.node("MatMul", x, n.b.constant(n.rng.standard_normal((shape[2], columns)) / 2))
    return n.b.node("Add", y, n.b.uniform(columns)), (shape[0], shape[1], columns)


def _attention(n: Network, x: str, shape: Shape) -> Made:
    scores = n.b.node("MatMul", x, n.b.node("Transpose", x, perm=[0, 1, 3, 2]))
    return n.b.node("MatMul", n.b.node("Softmax", n.b.node("Mul", scores, n.b.constant(0.3)), axis=-1), x), shape


def _normalized(n: Network, x: str, shape: Shape) -> Made:
    if n.rng.integers(2):
        return n.b.node("LayerNormalization", x, n.b.uniform(shape[2]), n.b.uniform(shape[2]), axis=-1), shape
    return n.b.node("BatchNormalization", x, *(n.b.uniform(shape[0]) for _ in range(4))), shape


def _moved(n: Network, x: str, shape: Shape) -> Made:
    order = [int(i) for i in n.rng.permutation(3)]
    moved = n.b.node("Transpose", x, perm=[0, *(1 + i for i in order)])
    made = (shape[order[0]], shape[order[1]], shape[order[2]])
    if n.rng.integers(2):
        made = (made[2], made[0], made[1])
        moved = n.b.node("Reshape", moved, n.b.constant([1, *made], np.int64))
    return moved, made


def _cut(n: Network, x: str, shape: Shape) -> Made:
    axis = int(n.rng.integers(3))
    step = int(n.one_of(1, 1, 2, -1))
    if shape[axis] < 2:
        return n.b.node("Identity", x), shape
    start = 1 if step > 0 else shape[axis] - 1
    end = shape[axis] if step > 0 else 0
    names = [n.b.constant([value], np.int64) for value in (start, end, axis + 1, step)]
    made = list(shape)
    made[axis] = len(range(start, end, step))
    return n.b.node("Slice", x, *names), (made[0], made[1], made[2])


def _padded(n: Network, x: str, shape: Shape) -> Made:
    amounts = [int(v) for v in n.rng.integers(0, 2, 4)]
    pads = n.b.constant([0, 0, *amounts[:2], 0, 0, *amounts[2:]], np.int64)
    value = n.b.constant(float(n.one_of(0.0, 1.5)))
    return n.b.node("Pad", x, pads, value), (
        shape[0],
        shape[1] + amounts[0] + amounts[2],
        shape[2] + amounts[1] + amounts[3],
    )


def _gathered(n: Network, x: str, shape: Shape) -> Made:
    count = int(n.rng.integers(1, 5))
    indices = n.b.constant(n.rng.integers(-shape[0], shape[0], count), np.int64)
    return n.b.node("Gather", x, indices, axis=1), (count, shape[1], shape[2])


def _pooled(n: Network, x: str, shape: Shape) -> Made:
    op = pick(n.rng, ("AveragePool", "MaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceL2"))
    if op.startswith("Reduce"):
        return n.b.node(op, x, n.b.constant([3], np.int64), keepdims=1), (shape[0], shape[1], 1)
    if op == "GlobalAveragePool":
        return n.b.node(op, x), (shape[0], 1, 1)
    return n.b.node(op, x, kernel_shape=[3, 3], pads=[1] * 4), shape


def _chosen(n: Network, x: str, shape: Shape) -> Made:
    other = n.like(shape)
    condition = n.b.node(pick(n.rng, ("Greater", "Less")), x, n.b.uniform(1, 1, 1, low=-0.5, high=0.5))
    return n.b.node("Where", condition, x, n.b.node("Mul", other, n.b.constant(0.5))), shape


def _whole(n: Network, x: str, shape: Shape) -> Made:
    """Through int32 and back; away from halves, where a rounding of floats would decide."""
    whole = n.b.node("Cast", n.b.node("Round", n.b.node("Mul", x, n.b.constant(4.0))), to=TensorProto.INT32)
    more = n.b.node(pick(n.rng, ("Add", "Mul", "Max")), whole, n.b.constant(3, np.int32))
    return n.b.node("Cast", more, to=TensorProto.FLOAT), shape


PRODUCTIONS: tuple[Callable[[Network, str, Shape], Made], ...] = (
    *LAYERS,
    *(_unary, _bounded, _float_conv, _qdq, _qdq_conv, _dense, _attention, _normalized),
    *(_moved, _cut, _padded, _gathered, _pooled, _chosen, _whole),
)
