"""The graph that lowering works on: values, nodes, and the edits that rewrites need.

It starts as the ONNX graph with all shapes known. Rewrites replace nodes by nodes with an `Operator` (operators/); a
node that no rule rewrites stays an ONNX node and is compiled by TVM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.dialect.macs import Shapes
from subbyte.dialect.state import State
from subbyte.errors import ModelError
from subbyte.formats import LowBitTensor, PerChannel
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.explanation import Explanation

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(eq=False)
class Value:
    """A tensor of the graph; `shape` is always the ONNX shape, `layout` and `storage` are those in memory."""

    name: str
    dtype: str
    shape: Shape
    data: Array | None = None  # a constant
    weight: LowBitTensor | None = None  # a low-bit constant, its output channel first
    order: tuple[int, ...] = ()  # of the axes of `weight`, in which they are those of the value
    scaled: bool = False  # the value is level x scale; else the level, and the scale is a `Mul` after the product
    storage: ops.Storage = field(default_factory=ops.Float)
    layout: str = "as-is"  # or "NHWC": channels (axis 1) last
    declared: str = ""  # the ONNX type of a constant of less than 8 bits; its data are bytes
    holds: str | None = None  # the ONNX value that it is, where lowering added a value for another layout

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_constant(self) -> bool:
        return self.data is not None or self.weight is not None

    @property
    def tensor(self) -> LowBitTensor:
        """`weight`, of a value that has one."""
        assert self.weight is not None
        return self.weight

    def scales_follow(self, axis: int) -> bool:
        """Whether scales by channel, if any, are along this axis: a `Mul` after a product can apply them."""
        by_channel = self.scaled and isinstance(self.tensor.granularity, PerChannel) and self.tensor.scale.size > 1
        return not by_channel or self.order[axis] == 0

    def floats(self) -> Array:
        """The float32 values of the weight, as other engines compute them."""
        raw = self.tensor.dequantize() if self.scaled else self.tensor.unscaled()
        return np.ascontiguousarray(np.transpose(raw, self.order), np.float32)

    @property
    def coded(self) -> bool:
        """Whether it is stored as codes or bits, not as its own dtype."""
        return self.storage.kind != "float"

    @property
    def codes(self) -> ops.Codes | None:
        """Its storage, if that is codes."""
        return self.storage if isinstance(self.storage, ops.Codes) else None

    @property
    def bits(self) -> ops.Bits | None:
        """Its storage, if that is bits."""
        return self.storage if isinstance(self.storage, ops.Bits) else None

    @property
    def memory_dtype(self) -> str:
        """dtype of the stored elements."""
        return self.storage.dtype if self.coded else self.dtype

    @property
    def memory_shape(self) -> Shape:
        """Shape in memory."""
        shape = self.shape
        if self.layout == "NHWC":
            shape = (shape[0], *shape[2:], shape[1])
        if self.bits is not None:
            shape = (*shape[:-1], -(-shape[-1] // 32))
        return shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(np.prod(self.memory_shape, dtype=np.int64)) * np.dtype(self.memory_dtype).itemsize


@dataclass(eq=False)
class Node:
    """An ONNX node, or with `operator` one for a kernel: its inputs are the operator's own, then the epilogue's."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    operator: ops.Operator | None = None
    axis: int | None = None  # of a kernel: the ONNX axis of its channels, 1 or -1; None: any
    reads: str = "as-is"  # of a kernel: layout of its own inputs; "same": that of its outputs
    fallback: str | None = None
    declined: dict[str, str] = field(default_factory=dict)  # the reason of each rule that declined

    def given(self, index: int) -> str:
        """The name of an input; empty for one that is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def perm(self, rank: int) -> list[int]:
        """The order of axes of a Transpose of so many."""
        return [int(axis) for axis in self.attributes.get("perm", range(rank)[::-1])]

    def and_declines(self, reason: str) -> str:
        """A reason for an error, with those of the rules that declined: "...; no 'rule', as its ..."."""
        rules: dict[str, list[str]] = {}
        for rule, why in self.declined.items():
            rules.setdefault(why, []).append(f"'{rule}'")
        return reason + "".join(f"; no {', '.join(who)}, as {why}" for why, who in rules.items() if why not in reason)


class Graph:
    """Values and nodes with an index from value to producer and users."""

    def __init__(self, name: str, opset: int) -> None:
        self.name = name
        self.opset = opset
        self.metadata: dict[str, str] = {}
        self.notes: list[str] = []  # for the report, on the file as a whole
        self.explanation: Explanation | None = None  # records what declines, if one is requested
        self.onnx_names: frozenset[str] = frozenset()  # values of the file; lowering adds others
        self.folded_bytes, self.folded_steps = 0, 0  # what was computed of constants: folding.py
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.states: dict[State, Array] = {}  # pairs of an input and an output, with the initial value
        self._nodes: dict[Node, None] = {}
        self._producer: dict[str, Node] = {}
        self._users: dict[str, dict[Node, None]] = {}
        self._fresh = 0
        self.positions: dict[Node, int] = {}  # of nodes in the order in which rules are applied

    # ---- looking ----

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def producer(self, name: str) -> Node | None:
        """The node that produces a value; None for inputs and constants."""
        return self._producer.get(name)

    def users(self, name: str) -> list[Node]:
        """The nodes that read a value, once each."""
        return list(self._users.get(name, ()))

    def only_user(self, name: str, node: Node) -> bool:
        """Whether `node` alone reads the value."""
        users = self._users.get(name, {})
        return len(users) == 1 and node in users and name not in self.outputs

    def constant_of(self, name: str) -> Array | None:
        """The array of a constant, or None."""
        return self.values[name].data if name in self.values else None

    def order(self) -> list[Node]:
        """Nodes, producers first, otherwise in the order they were added; raises ModelError on a cycle."""
        done: dict[Node, bool] = {}
        ordered: list[Node] = []
        for root in self._nodes:
            stack: list[tuple[Node, Iterator[str]]] = []
            if root not in done:
                done[root] = False
                stack.append((root, iter(root.inputs)))
            while stack:
                node, rest = stack[-1]
                parent = next((p for p in (self._producer.get(i) for i in rest) if p and not done.get(p)), None)
                if parent is None:
                    done[node] = True
                    ordered.append(node)
                    stack.pop()
                elif parent in done:
                    raise ModelError(f"the graph has a cycle through '{parent.name or parent.op}'; ONNX allows none")
                else:
                    done[parent] = False
                    stack.append((parent, iter(parent.inputs)))
        return ordered

    # ---- editing ----

    def fresh(self, hint: str) -> str:
        """A value name that is not taken."""
        while True:
            self._fresh += 1
            name = f"{hint}:{self._fresh}"
            if name not in self.values:
                return name

    def add_value(self, name: str, dtype: str, shape: Sequence[int], **fields: Any) -> Value:
        value = Value(name, dtype, tuple(int(d) for d in shape), **fields)
        self.values[name] = value
        return value

    def constant(self, array: Any, hint: str = "constant") -> str:
        """A new constant; returns its name."""
        data = np.asarray(array)
        name = self.fresh(hint)
        self.add_value(name, data.dtype.name, data.shape, data=data)
        return name

    def weight(self, tensor: LowBitTensor, order: Sequence[int], scaled: bool, hint: str = "weight") -> str:
        """A new low-bit constant, `tensor` with its axes in that order; returns its name."""
        name = self.fresh(hint)
        shape = [tensor.shape[axis] for axis in order]
        self.add_value(name, "float32", shape, weight=tensor, order=tuple(order), scaled=scaled)
        return name

    def add(self, node: Node) -> Node:
        """Add a node whose values exist to the graph."""
        self._nodes[node] = None
        for output in node.outputs:
            self._producer[output] = node
        for name in node.inputs:
            self._users.setdefault(name, {})[node] = None
        return node

    def emit(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], hint: str, like: Node | None = None, **fields: Any
    ) -> str:
        """Add a node with one new float32 output of that shape; returns the output's name."""
        output = self.fresh(hint)
        dtype = fields.pop("dtype", "float32")
        self.add_value(output, dtype, shape)
        self.add(Node(op, list(inputs), [output], name=like.name if like else hint, **fields))
        return output

    def remove(self, node: Node) -> None:
        """Remove a node; its output values stay, to be produced by another."""
        del self._nodes[node]
        for output in node.outputs:
            if self._producer.get(output) is node:
                del self._producer[output]
        self._forget_uses(node)

    def _forget_uses(self, node: Node) -> None:
        for name in set(node.inputs):
            self._users.get(name, {}).pop(node, None)

    def replace_node(self, old: Node, *new: Node) -> None:
        """Replace a node by others; usually the last of them has its outputs."""
        self.remove(old)
        for node in new:
            self.add(node)

    def set_inputs(self, node: Node, inputs: Sequence[str]) -> None:
        """Replace the inputs of a node, and their names in its operator's epilogue."""
        renamed = dict(zip(node.inputs, inputs, strict=False))
        self._forget_uses(node)
        node.inputs = list(inputs)
        if node.operator is not None:
            node.operator = node.operator.renamed(renamed)
        for name in node.inputs:
            self._users.setdefault(name, {})[node] = None

    def set_outputs(self, node: Node, outputs: Sequence[str]) -> None:
        """Replace the outputs of a node."""
        for output in node.outputs:
            if self._producer.get(output) is node:
                del self._producer[output]
        node.outputs = list(outputs)
        for output in outputs:
            self._producer[output] = node

    def replace_uses(self, old: str, new: str, only: Sequence[Node] | None = None) -> None:
        """Let the users of `old` (or only these) read `new`."""
        for user in self.users(old) if only is None else only:
            self.set_inputs(user, [new if name == old else name for name in user.inputs])

    def prune(self) -> None:
        """Remove nodes and values that nothing reads."""
        alive: set[Node] = set()
        stack = [self._producer[name] for name in self.outputs if name in self._producer]
        while stack:
            node = stack.pop()
            if node not in alive:
                alive.add(node)
                stack.extend(self._producer[name] for name in node.inputs if name in self._producer)
        for node in [n for n in self._nodes if n not in alive]:
            self.remove(node)
        used = {name for node in self._nodes for name in (*node.inputs, *node.outputs)} | {*self.inputs, *self.outputs}
        self.values = {name: value for name, value in self.values.items() if name in used}


def shapes_of(graph: Graph, node: Node) -> Shapes:
    """The shapes of a node's inputs and first output, and its attributes."""
    inputs = [graph.values[name].shape if name else () for name in node.inputs]
    return Shapes(inputs, graph.values[node.outputs[0]].shape, node.attributes)


def epilogue_of(node: Node) -> ops.Epilogue | None:
    """The epilogue of a kernel; None for other nodes and for kernels without one."""
    return node.operator.epilogue if isinstance(node.operator, ops.Fused) else None


def set_epilogue(node: Node, steps: Sequence[ops.Step], stores: Sequence[ops.Store]) -> None:
    """Give a kernel another epilogue."""
    assert isinstance(node.operator, ops.Fused)
    node.operator = node.operator.with_epilogue(ops.Epilogue(tuple(steps), tuple(stores)))
