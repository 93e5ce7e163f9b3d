"""Random quantized networks: layers drawn one after another, on values drawn from the last few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hand_graphs import Builder

FORMATS = ("ternary", "int3", "int8", "pow2_4", "binary", "int4")
Made = tuple[str, tuple[int, int, int]]  # a value [1, channels, height, width] without its batch


class Network:
    """A builder, its random numbers, and the values made so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = Builder(seed)
        shape = (int(self.rng.choice([1, 3, 33])), *[int(self.rng.choice([5, 8]))] * 2)
        self.values: list[Made] = [(self.b.input(1, *shape), shape)]

    def like(self, shape: tuple[int, int, int]) -> str:
        """One of the last values of that shape."""
        same = [name for name, other in self.values if other == shape][-3:]
        return str(self.rng.choice(same))

    def one_of(self, *options: object) -> object:
        return options[int(self.rng.integers(len(options)))]


def conv(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    channels, height, width = shape
    kernel, stride, pad = (3, n.one_of(1, 2), 1) if n.rng.integers(2) else (1, 1, 0)
    groups, out = n.one_of((1, 2), (1, 16), (channels, channels))
    codes = n.b.quantize(x, 7.0, *n.one_of((-128, 127), (0, 255)))
    attributes = {"pads": [pad] * 4, "strides": [stride, stride], "group": groups}
    y = n.b.conv(codes, str(n.rng.choice(FORMATS)), out, channels // groups, kernel, kernel, **attributes)
    return y, (out, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)


def binary_conv(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    channels, height, width = shape
    signs = n.b.binarize(x, n.one_of(0.1, n.rng.normal(0, 0.2, (1, channels, 1, 1))))
    fill = n.b.constant(n.one_of(1.0, 1.0, 0.0))
    padded = n.b.node("Pad", signs, n.b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), fill)
    return n.b.conv(padded, n.one_of("binary", "binary", "int4"), 40, channels, 3, 3), (40, height, width)


def linear(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    flat = n.one_of(n.b.node("Flatten", x), n.b.node("Reshape", x, n.b.constant([1, -1], np.int64)))
    codes = n.b.quantize(flat, 9.0) if n.rng.integers(2) else n.b.binarize(flat, 0.05)
    y = n.b.linear(codes, str(n.rng.choice(FORMATS)), 7, int(np.prod(shape)))
    return n.b.node("Reshape", y, n.b.constant([1, 7, 1, 1], np.int64)), (7, 1, 1)


def tokens(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    channels, height, width = shape
    rows = n.b.node("Reshape", x, n.b.constant([1, channels, height * width], np.int64))
    y = n.b.linear(n.b.quantize(n.b.node("Transpose", rows, perm=[0, 2, 1])), "int4", channels, channels)
    back = n.b.node("Transpose", y, perm=[0, 2, 1])
    return n.b.node("Reshape", back, n.b.constant([1, *shape], np.int64)), shape


def pooled(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    channels, height, width = shape
    if min(height, width) > 1 and n.rng.integers(2):
        return n.b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), (channels, height // 2, width // 2)
    summed = n.b.node("ReduceSum", n.b.quantize(x, 10.0, 0, 255), n.b.constant([2, 3], np.int64), keepdims=1)
    return n.b.node("Mul", summed, n.b.constant(0.01)), (channels, 1, 1)


def elementwise(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    channels, _, width = shape
    op, operand = n.one_of(
        *[("Mul", n.b.uniform(1, channels, 1, 1)), ("Add", n.b.uniform(width)), ("Add", n.b.uniform(1, *shape))],
        *[("PRelu", n.b.uniform(channels, 1, 1)), ("Div", n.b.constant(2.0)), ("Div", n.b.constant(3.0))],
        *[("Add", n.like(shape)), ("Sub", n.like(shape)), ("Relu", None), ("LeakyRelu", None)],
    )
    return n.b.node(op, *[name for name in (x, operand) if name is not None]), shape


def joined(n: Network, x: str, shape: tuple[int, int, int]) -> Made:
    return n.b.node("Concat", x, n.like(shape), axis=1), (2 * shape[0], *shape[1:])


LAYERS: tuple[Callable[[Network, str, tuple[int, int, int]], Made], ...] = (
    *(conv, conv, binary_conv, linear, tokens, pooled),
    *(elementwise, elementwise, elementwise, joined),
)


def random_network(seed: int) -> onnx.ModelProto:
    """Three to eight layers; the last value and a few others are outputs."""
    n = Network(seed)
    for _ in range(int(n.rng.integers(3, 9))):
        layer = LAYERS[int(n.rng.integers(len(LAYERS)))]
        x, shape = n.values[-int(n.rng.integers(1, min(3, len(n.values)) + 1))]
        if shape[0] <= 160:
            n.values.append(layer(n, x, shape))
    made = [name for name, _ in n.values[1:]]
    return n.b.model(made[-1], *[name for name in made[:-1] if n.rng.random() < 0.15])
