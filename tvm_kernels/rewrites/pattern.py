"""Rows of the rewrite table: a pattern of ONNX nodes, and the function that rewrites what it finds.

    rule("scale", Op("Mul", Any("x"), Const("factor")), to=with_scale)

The root of a pattern is a node; below it stand patterns of its inputs. What they find is handed to the rewrite by name:
`with_scale(graph, node, x=..., factor=...)`. A rewrite returns False to decline, and the next row is tried.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.graph import Graph, Node

Found = dict[str, typing.Any]
COMMUTATIVE = {"Add", "Mul", "Max", "Min"}


class Pattern(Protocol):
    """Looks at a value; adds what it captures to `found`, or says no."""

    def matches(self, graph: Graph, name: str, found: Found) -> bool: ...


@dataclass(frozen=True)
class Any:
    """A value computed at run time, or with `constants` any; captured by name. A second use must be the same value."""

    key: str
    constants: bool = False

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        if not name or (graph.values[name].is_constant and not self.constants):
            return False
        if self.key in found:
            return bool(found[self.key] == name)
        found[self.key] = name
        return True


@dataclass(frozen=True)
class Const:
    """A constant; captured as an array."""

    key: str

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        data = graph.constant_of(name)
        if data is None:
            return False
        found[self.key] = data
        return True


@dataclass(frozen=True)
class Near:
    """A scalar constant of this value (relative tolerance 1e-5)."""

    value: float

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        data = graph.constant_of(name)
        return data is not None and data.size == 1 and bool(np.isclose(data.reshape(-1)[0], self.value, 1e-5, 0))


@dataclass(frozen=True)
class Weights:
    """Low-bit weights; captured as a Weight."""

    key: str

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        if not name or graph.values[name].weight is None:
            return False
        found[self.key] = graph.values[name].weight
        return True


@dataclass(frozen=True)
class Coded:
    """A run-time value held as codes or bits; captured by name."""

    key: str

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        if not name or isinstance(graph.values[name].storage, ops.Float) or graph.values[name].is_constant:
            return False
        found[self.key] = name
        return True


class Op:
    """A node of this type; further inputs that the pattern does not name must be absent, unless `rest`."""

    def __init__(self, op: str, *inputs: Pattern, key: str = "", domain: str = "", rest: bool = False) -> None:
        self.op, self.inputs, self.key, self.domain, self.rest = op, inputs, key, domain, rest

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        node = graph.producer(name)
        if node is None or node.outputs[0] != name:
            return False
        got = self.match_node(graph, node, found)
        if got is None:
            return False
        found.update(got)
        return True

    def match_node(self, graph: Graph, node: Node, found: Found) -> Found | None:
        if node.op != self.op or node.domain != self.domain or node.operator is not None:
            return None
        extra = [name for name in node.inputs[len(self.inputs) :] if name]
        if len(node.inputs) < len(self.inputs) or (extra and not self.rest):
            return None
        orders: list[Sequence[str]] = [node.inputs]
        if self.op in COMMUTATIVE and len(self.inputs) == 2:
            orders.append(node.inputs[::-1])
        for order in orders:
            trial = dict(found)
            if all(p.matches(graph, name, trial) for p, name in zip(self.inputs, order, strict=False)):
                if self.key:
                    trial[self.key] = node
                return trial
        return None


@dataclass(frozen=True)
class Rule:
    """A row: `rewrite(graph, node, **captures)` returns False when it declines."""

    name: str
    pattern: Op
    rewrite: Callable[..., bool]


def rule(name: str, pattern: Op, to: Callable[..., bool]) -> Rule:
    """A row of the table."""
    return Rule(name, pattern, to)


def apply(graph: Graph, rules: Iterable[Rule]) -> list[str]:
    """Apply rules, producers first, until none matches; returns the names of the rules applied, in order."""
    by_op: dict[str, list[Rule]] = {}
    for row in rules:
        by_op.setdefault(row.pattern.op, []).append(row)
    applied: list[str] = []
    changed = True
    while changed:
        changed = False
        for node in graph.order():
            for row in by_op.get(node.op, ()):
                if node not in graph:
                    break
                found = row.pattern.match_node(graph, node, {})
                if found is not None and row.rewrite(graph, node, **found):
                    applied.append(row.name)
                    changed = True
                    break
        graph.prune()
    return applied
