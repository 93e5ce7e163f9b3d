"""Multiply-accumulates of products, from their shapes: for `inspect`, and for calls through TVM.

To count another operator, add a row to `MACS`; operators without products are listed in known_operators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from subbyte.dialect.function import Shape


class UnknownShape(Exception):
    """A shape or a length on which the multiply-accumulates depend is not in the file."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a node's inputs (() of an omitted one) and of its first output, and its attributes.

    None is an unknown shape; reading it raises UnknownShape.
    """

    inputs: Sequence[Shape | None]
    result: Shape | None
    attributes: Mapping[str, Any]

    def of(self, index: int) -> Shape:
        """The shape of an input; () of an omitted one."""
        return _known(self.inputs[index]) if index < len(self.inputs) else ()

    @property
    def output(self) -> Shape:
        """The shape of the first output."""
        return _known(self.result)


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise UnknownShape
    return shape


def _window(weight: int) -> Callable[[Shapes], int]:
    """Each output element is a sum over one filter; `weight` is the index of the filters among the inputs."""
    return lambda shapes: prod(shapes.output) * prod(shapes.of(weight)[1:])


def _gemm(shapes: Shapes) -> int:
    return prod(shapes.output) * shapes.of(0)[0 if shapes.attributes.get("transA", 0) else 1]


def _recurrent(shapes: Shapes) -> int:
    """All weights, [directions, gates x hidden, input] and [..., hidden], once per time step of each sequence."""
    steps, sequences = shapes.of(0)[:2]
    return steps * sequences * (prod(shapes.of(1)) + prod(shapes.of(2)))


def _attention(shapes: Shapes) -> int:
    """Queries x keys, then weights x values; past keys (input 4) count too."""
    keys = shapes.of(1)[-2] + (shapes.of(4)[-2] if shapes.of(4) else 0)
    return (prod(shapes.of(0)) + prod(shapes.output)) * keys


def _linear_attention(shapes: Shapes) -> int:
    """Each step adds keys x values to the state of a head, and multiplies it with queries; "delta" also with keys."""
    batch, steps, _ = shapes.of(0)
    heads, shared = int(shapes.attributes["q_num_heads"]), int(shapes.attributes["kv_num_heads"])
    state = (shapes.of(1)[-1] // shared) * (shapes.of(2)[-1] // shared)
    reads = 2 if "delta" in shapes.attributes.get("update_rule", "gated_delta") else 1
    return batch * steps * state * (heads + shared * reads)


def _einsum(shapes: Shapes) -> int:
    """One multiplication per combination of all indices and per operand after the first."""
    terms = shapes.attributes["equation"].replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = shapes.of(index)
        before, dots, after = term.partition("...")
        inner = shape[len(before) : len(shape) - len(after)] if dots else ()
        indices = [*before, *(f"...{n - len(inner)}" for n in range(len(inner))), *after]
        for label, size in zip(indices, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return prod(sizes.values()) * (len(terms) - 1)


def _fourier(shapes: Shapes) -> int:
    """The length of the transform is the value of an input."""
    raise UnknownShape


def _nbits(shapes: Shapes) -> int:
    if not {"K", "N"} <= shapes.attributes.keys():
        raise UnknownShape
    return prod(shapes.of(0)[:-1]) * int(shapes.attributes["K"]) * int(shapes.attributes["N"])


MACS: dict[str, Callable[[Shapes], int]] = {
    "AffineGrid": lambda shapes: prod(shapes.output) * shapes.of(0)[-1],
    "CausalConvWithState": _window(1),
    "Conv": _window(1),
    "ConvInteger": _window(1),
    "DeformConv": _window(1),
    "QLinearConv": _window(3),
    "ConvTranspose": lambda shapes: prod(shapes.of(0)) * prod(shapes.of(1)[1:]),
    "MatMul": lambda shapes: prod(shapes.output) * shapes.of(0)[-1],
    "MatMulInteger": lambda shapes: prod(shapes.output) * shapes.of(0)[-1],
    "QLinearMatMul": lambda shapes: prod(shapes.output) * shapes.of(0)[-1],
    "Gemm": _gemm,
    "DFT": _fourier,
    "STFT": _fourier,
    "Einsum": _einsum,
    "Attention": _attention,
    "LinearAttention": _linear_attention,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "com.microsoft.MatMulNBits": _nbits,
}
