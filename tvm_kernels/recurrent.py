"""The bodies of GRU, LSTM and RNN, whose ONNX schemas have none: every step in standard operators.

X W^T is one product for all steps, H R^T one or two for each. The equations, and the order of the gates in W, R, B and
P, are those of the ONNX operator specification; (1 - z) n + z H of a GRU is n + z (H - n) here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from subbyte.files.limits import NODES

BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}  # for each direction
ACTIVATIONS = ("Relu", "Sigmoid", "Softplus", "Softsign", "Tanh")  # those without alpha and beta
NODES_OF_A_STEP = 32  # more than any cell has
BIAS, LENGTHS, FIRST_H, FIRST_C, PEEPHOLES = range(3, 8)  # indices of optional inputs


def unsupported(op: str, attributes: Mapping[str, Any], steps: int) -> str:
    """What a GRU, LSTM or RNN has for which there is no body; empty if there is one."""
    for name in ("clip", "input_forget", "layout"):
        if attributes.get(name, 0):
            return f"its attribute {name} is {attributes[name]}; handled: its default"
    directions = len(_backwards(attributes))
    names, wanted = _activations(op, attributes), directions * len(CELLS[op].activations)
    if len(names) != wanted or set(names) - set(ACTIVATIONS):
        return f"its activations are {', '.join(names)}; handled: {wanted} of {', '.join(ACTIVATIONS)}"
    if steps * directions * NODES_OF_A_STEP > NODES:
        return f"it has {steps} steps; export a model of one step with a state (docs/state.md)"
    return ""


def body(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> list[onnx.NodeProto]:
    """The nodes that compute a GRU, LSTM or RNN with inputs of these types; none for an unsupported variant."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    steps, batch = (dim.dim_value for dim in types[node.input[0]].tensor_type.shape.dim[:2])
    if unsupported(node.op_type, attributes, steps):
        return []
    b = _Body({*node.input, *node.output})
    dtype = onnx.helper.tensor_dtype_to_np_dtype(types[node.input[0]].tensor_type.elem_type)
    ends = []
    for direction, backwards in enumerate(_backwards(attributes)):
        hidden = types[node.input[2]].tensor_type.shape.dim[2].dim_value
        cell = CELLS[node.op_type](b, node, attributes, direction, hidden)
        zeros = b.constant(np.zeros((batch, hidden), dtype))
        h, c = (b.row(_given(node.input, index), direction) or zeros for index in (FIRST_H, FIRST_C))
        of_x = b.linear(node.input[0], *cell.of_x)
        ys = [""] * steps
        for step in reversed(range(steps)) if backwards else range(steps):
            next_h, next_c = cell.step(b.row(of_x, step), h, c)
            goes_on = _goes_on(b, step, _given(node.input, LENGTHS))
            ys[step], h, c = goes_on(next_h, zeros), goes_on(next_h, h), goes_on(next_c, c)
        ends.append((b.stack(ys, 0), h, c))
    for values, axis, output in zip(zip(*ends, strict=True), (1, 0, 0), node.output, strict=False):
        if output:
            b.stack(values, axis, output)
    return b.nodes


def _goes_on(b: _Body, step: int, lengths: str) -> Callable[[str, str], str]:
    """Chooses the first of two values [batch, hidden] for the sequences that have this step, else the second."""
    if not lengths:
        return lambda value, other: value
    has_step = b("Less", b.constant(np.array(step, np.int32)), b("Unsqueeze", lengths, b.constant([1])))
    return lambda value, other: b("Where", has_step, value, other)


# ---- the cells: x [batch, gates x hidden] is X W^T + Wb of one step ----


class _Cell:
    """One direction of a node: the names of its weights, and the activations."""

    groups: tuple[int, ...]  # consecutive gates that one product with H computes
    activations: tuple[str, ...]  # without the attribute

    def __init__(
        self, b: _Body, node: onnx.NodeProto, attributes: Mapping[str, Any], direction: int, hidden: int
    ) -> None:
        count, self.b, self.hidden = len(self.activations), b, hidden
        self.acts = _activations(node.op_type, attributes)[direction * count : (direction + 1) * count]
        self.reset_after = bool(attributes.get("linear_before_reset", 0))
        w, r, bias, peepholes = (b.row(_given(node.input, index), direction) for index in (1, 2, BIAS, PEEPHOLES))
        sizes = [gates * hidden for gates in self.groups]
        bias_x, bias_h = b.split(bias, [sum(sizes)] * 2) if bias else ("", "")
        biases = b.split(bias_h, sizes) if bias else [""] * len(sizes)
        self.of_x = (b.transposed(w), bias_x)
        self.of_h = [(b.transposed(rows), bias) for rows, bias in zip(b.split(r, sizes), biases, strict=True)]
        self.peepholes = b.split(peepholes, [hidden] * 3) if peepholes else [""] * 3

    def step(self, x: str, h: str, c: str) -> tuple[str, str]:
        """The next H and C."""
        raise NotImplementedError


class _RNN(_Cell):
    groups, activations = (1,), ("Tanh",)

    def step(self, x: str, h: str, c: str) -> tuple[str, str]:
        return self.b(self.acts[0], self.b("Add", x, self.b.linear(h, *self.of_h[0]))), c


class _GRU(_Cell):
    """Gates z, r, n."""

    groups, activations = (2, 1), ("Sigmoid", "Tanh")

    def step(self, x: str, h: str, c: str) -> tuple[str, str]:
        b, (f, g) = self.b, self.acts
        x_zr, x_n = b.split(x, [2 * self.hidden, self.hidden], axis=1)
        zr = b(f, b("Add", x_zr, b.linear(h, *self.of_h[0])))
        z, r = b.split(zr, [self.hidden] * 2, axis=1)
        w, bias = self.of_h[1]
        of_h = b("Mul", r, b.linear(h, w, bias)) if self.reset_after else b.linear(b("Mul", r, h), w, bias)
        n = b(g, b("Add", x_n, of_h))
        return b("Add", n, b("Mul", z, b("Sub", h, n))), c


class _LSTM(_Cell):
    """Gates i, o, f, c; peepholes of i, o, f."""

    groups, activations = (4,), ("Sigmoid", "Tanh", "Tanh")

    def step(self, x: str, h: str, c: str) -> tuple[str, str]:
        b, (f, g, last) = self.b, self.acts
        i, o, forget, new = b.split(b("Add", x, b.linear(h, *self.of_h[0])), [self.hidden] * 4, axis=1)
        p_i, p_o, p_f = self.peepholes
        kept = b("Mul", b(f, self.seen(forget, p_f, c)), c)
        c = b("Add", kept, b("Mul", b(f, self.seen(i, p_i, c)), b(g, new)))
        return b("Mul", b(f, self.seen(o, p_o, c)), b(last, c)), c

    def seen(self, gate: str, peephole: str, c: str) -> str:
        """A gate that sees C through its peephole, if it has one."""
        return self.b("Add", gate, self.b("Mul", peephole, c)) if peephole else gate


CELLS: dict[str, type[_Cell]] = {"GRU": _GRU, "LSTM": _LSTM, "RNN": _RNN}


# ---- attributes and nodes ----


def _given(inputs: Sequence[str], index: int) -> str:
    return inputs[index] if index < len(inputs) else ""


def _backwards(attributes: Mapping[str, Any]) -> tuple[bool, ...]:
    return BACKWARDS[_text(attributes.get("direction", "forward"))]


def _activations(op: str, attributes: Mapping[str, Any]) -> list[str]:
    names = attributes.get("activations") or CELLS[op].activations * len(_backwards(attributes))
    return [_text(name) for name in names]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class _Body:
    """Nodes in order; a call adds one, and returns the name of its output."""

    def __init__(self, taken: set[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.taken = taken

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or self.fresh()
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def fresh(self) -> str:
        name = f"v{len(self.taken)}"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def constant(self, array: Any) -> str:
        return self("Constant", value=onnx.numpy_helper.from_array(np.asarray(array)))

    def row(self, name: str, index: int) -> str:
        """The part `index` of the first axis, which it lacks; nothing of an input that is not given."""
        return self("Gather", name, self.constant(np.array(index, np.int64)), axis=0) if name else ""

    def split(self, name: str, sizes: Sequence[int], axis: int = 0) -> list[str]:
        if len(sizes) == 1:
            return [name]
        outputs = [self.fresh() for _ in sizes]
        inputs = [name, self.constant(np.array(sizes, np.int64))]
        self.nodes.append(onnx.helper.make_node("Split", inputs, outputs, axis=axis))
        return outputs

    def transposed(self, matrix: str) -> str:
        return self("Transpose", matrix, perm=[1, 0])

    def linear(self, x: str, weights: str, bias: str) -> str:
        product = self("MatMul", x, weights)
        return self("Add", product, bias) if bias else product

    def stack(self, names: Sequence[str], axis: int, output: str = "") -> str:
        """Tensors along a new axis."""
        at = self.constant(np.array([axis], np.int64))
        return self("Concat", *(self("Unsqueeze", name, at) for name in names), axis=axis, output=output)
