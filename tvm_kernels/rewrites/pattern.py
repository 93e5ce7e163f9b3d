"""Rows of the rewrite table: a pattern of ONNX nodes, and the function that rewrites what it finds.

    rule("scale", Op("Mul", Any("x"), Const("factor")), to=with_scale)

The root of a pattern is a node; its arguments are patterns of the node's inputs. Their captures are passed to the
rewrite by name: `with_scale(graph, node, x=..., factor=...)`. A rewrite returns True; or the reason why it declines, in
one clause that a reader of the ONNX file understands; or None if there is nothing to change. Then the next row is
tried.

A pattern also states which dtypes, attributes and outputs its rewrite handles: by default float32, no attribute and one
output. The matcher declines every other node for all rules, with the reason in `node.declined`:

    Op("Transpose", Any("x"), dtypes=EVERY, attributes=("perm",))

A call of the dialect is matched by the function itself, not by its name: `Op(Quantize, Any("x"), ...)`.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnx.defs
import onnx.helper

from subbyte.dialect.function import Function
from subbyte.dialect.names import DOMAIN
from subbyte.errors import RegistrationError
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.graph import Graph, Node
from subbyte.tvm_kernels.internal_operators import INTERNAL, is_known

Found = dict[str, typing.Any]
COMMUTATIVE = {"Add", "Mul", "Max", "Min"}
# What a pattern accepts: dtypes of run-time values, "codes" for those stored as codes or bits; and attributes.
FLOAT32: Collection[str] = ("float32",)
LEVELS: Collection[str] = ("float32", "codes")  # for arithmetic on the levels
EVERY = None
WINDOW = (  # including those that lowering itself adds
    *("auto_pad", "kernel_shape", "strides", "dilations", "pads", "group", "ceil_mode", "explicit", "pads_with"),
)


class Pattern(Protocol):
    """Whether a value matches; adds its captures to `found`."""

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
    """Low-bit weights, captured as the value: any, those whose levels are integers, or those of real levels."""

    key: str
    integers: bool | None = None

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        weight = graph.values[name].weight if name else None
        if weight is None or self.integers not in (None, weight.format.levels.integer):
            return False
        found[self.key] = graph.values[name]
        return True


@dataclass(frozen=True)
class Coded:
    """A run-time value stored as codes or bits, captured by name; with `integers` its ONNX type is an integer."""

    key: str
    integers: bool = False

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        if not name or not graph.values[name].coded or graph.values[name].is_constant:
            return False
        if (graph.values[name].dtype != "float32") != self.integers:
            return False
        found[self.key] = name
        return True


class Op:
    """A node of this type, or a call of this function of the dialect, and the variants that a rewrite handles.

    Further inputs that the pattern does not name must be absent, unless `rest`. `dtypes`: of run-time inputs and of
    outputs; "codes" for inputs stored as codes, which `Coded` implies. `attributes`: those that the rewrite reads or
    that have no effect; any other must have the default of its schema. `outputs`: how many; nothing may read further
    ones. EVERY, for each of the three: no restriction.
    """

    def __init__(
        self,
        op: str | Function,
        *inputs: Pattern,
        key: str = "",
        domain: str = "",
        rest: bool = False,
        dtypes: Collection[str] | None = FLOAT32,
        attributes: Collection[str] | None = (),
        outputs: int | None = 1,
    ) -> None:
        self.op, self.domain = (op.name, DOMAIN) if isinstance(op, Function) else (op, domain)
        self.inputs, self.key, self.rest = inputs, key, rest
        self.dtypes, self.attributes, self.outputs = dtypes, attributes, outputs

    @property
    def operators(self) -> Iterator[tuple[str, str]]:
        """The domain and name of each operator of the pattern."""
        yield self.domain, self.op
        for one in self.inputs:
            if isinstance(one, Op):
                yield from one.operators

    @property
    def captures(self) -> set[str]:
        """The names of the arguments that a rewrite gets from the pattern."""
        below = [one.captures if isinstance(one, Op) else {getattr(one, "key", "")} for one in self.inputs]
        return set().union({self.key}, *below) - {""}

    def matches(self, graph: Graph, name: str, found: Found) -> bool:
        node = graph.producer(name)
        if node is None or node.outputs[0] != name:
            return False
        got = self.match_node(graph, node, found)
        if got is None or self.beyond(graph, node):
            return False
        found.update(got)
        return True

    def match_node(self, graph: Graph, node: Node, found: Found) -> Found | None:
        """The captures, if the node and the producers of its inputs match the pattern."""
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

    def beyond(self, graph: Graph, node: Node) -> str:
        """What the rewrite does not handle of the node; empty if it handles all."""
        values = [graph.values[name] for name in [*node.inputs, *node.outputs[: self.outputs]] if name]
        dtypes = {*(self.dtypes or ()), *("codes" for pattern in self.inputs if isinstance(pattern, Coded))}
        for value in values if self.dtypes is not EVERY else ():
            coded = value.coded
            got = "codes" if coded else value.dtype
            # Only lowering itself stores an output as codes.
            if got not in dtypes and not value.is_constant and not (coded and value.name in node.outputs):
                return f"'{value.name}' is {got}; handled: {', '.join(sorted(dtypes))}"
        for name, setting in other_than_default(graph, node).items():
            if self.attributes is not EVERY and name not in self.attributes:
                return f"its attribute {name} is {setting}; handled: its default"
        for name in node.outputs[self.outputs :] if self.outputs is not EVERY else ():
            if name and (graph.users(name) or name in graph.outputs):
                return f"its output '{name}' is used; handled: the first {self.outputs}"
        return ""


# Defaults that ONNX states only in prose: this value along each spatial axis.
ALONG_EACH_AXIS = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}


def other_than_default(graph: Graph, node: Node) -> dict[str, typing.Any]:
    """The attributes of an ONNX node that differ from the default of its schema; none for our own nodes."""
    if node.domain in (DOMAIN, INTERNAL) or node.operator is not None:
        return {}
    defaults = _defaults(node.op, graph.opset) if not node.domain else {}

    def is_default(name: str, value: typing.Any) -> bool:
        if name in ALONG_EACH_AXIS and not node.domain:
            return bool(np.all(np.equal(value, ALONG_EACH_AXIS[name])))
        return name in defaults and np.array_equal(defaults[name], value)

    return {name: value for name, value in node.attributes.items() if not is_default(name, value)}


@functools.cache
def _defaults(op: str, opset: int) -> Mapping[str, typing.Any]:
    """The defaults that the schema of a standard operator gives; operators of lowering itself have none."""
    if not onnx.defs.has(op, opset, ""):
        return {}
    attributes = onnx.defs.get_schema(op, opset, "").attributes
    found = {}
    for name, attribute in attributes.items():
        if attribute.default_value.type:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            found[name] = value.decode() if isinstance(value, bytes) else value
    return found


Outcome = Literal[True] | str | None  # rewritten; declined, with the reason; nothing to change


@dataclass(frozen=True)
class Rule:
    """A row: `rewrite(graph, node, **captures)` returns its Outcome."""

    name: str
    pattern: Op
    rewrite: Callable[..., Outcome]

    def apply(self, graph: Graph, node: Node) -> bool:
        """Rewrite a node if it matches; returns whether it did. The reason of a decline is stored in the node."""
        working_on(f"rule '{self.name}'", node)
        found = self.pattern.match_node(graph, node, {})
        if found is None:
            return False
        outcome: Outcome = self.pattern.beyond(graph, node) or None
        if outcome is None:
            if self.pattern.outputs is not EVERY and any(node.outputs[self.pattern.outputs :]):
                graph.set_outputs(node, node.outputs[: self.pattern.outputs])
            outcome = self.rewrite(graph, node, **found)
        if isinstance(outcome, str) and outcome:
            decline(graph, node, self.name, outcome)
        elif outcome is True:
            node.declined.pop(self.name, None)
            if graph.explanation is not None:
                graph.explanation.rule_took(self.name, node)
        elif outcome is not None:
            raise TypeError(f"rule '{self.name}' returned {outcome!r}: return True, the reason of a decline, or None")
        return outcome is True


def decline(graph: Graph, node: Node, rule: str, reason: str) -> None:
    """Record that a rule, or a part of one, does not rewrite a node."""
    node.declined[rule] = reason
    if graph.explanation is not None:
        graph.explanation.rule_declined(rule, node, reason)


def rule(name: str, pattern: Op, to: Callable[..., Outcome]) -> Rule:
    """A row of the table; raises RegistrationError without a name, or if the rewrite does not take the captures."""
    if not isinstance(pattern, Op):
        raise RegistrationError(f"rule '{name}': its pattern is {pattern!r}, expected an Op")
    if not name:
        raise RegistrationError(f"a rule for {pattern.op} has no name; the report of a compile needs one")
    for domain, op in pattern.operators:
        if not is_known(domain, op):
            raise RegistrationError(
                f"rule '{name}': its pattern has '{op}' of domain '{domain}', expected an operator of ONNX or of "
                "dialect/known_operators.py, a function of the dialect, or one of internal_operators.py"
            )
    if not callable(to):
        raise RegistrationError(f"rule '{name}': its rewrite is {to!r}, expected a function")
    try:
        inspect.signature(to).bind(None, None, **dict.fromkeys(pattern.captures))
    except TypeError as error:
        raise RegistrationError(
            f"rule '{name}': {error}; its rewrite is called as (graph, node, "
            f"{', '.join(f'{key}=...' for key in sorted(pattern.captures))}), as its pattern says"
        ) from error
    return Rule(name, pattern, to)


def apply(graph: Graph, rules: Iterable[Rule]) -> list[str]:
    """Apply rules, producers first, until none matches; returns the names of the rules applied, in order."""
    by_op: dict[str, list[Rule]] = {}
    for row in rules:
        by_op.setdefault(row.pattern.op, []).append(row)
    if graph.explanation is not None:
        graph.explanation.rules_are_for(by_op)
    applied: list[str] = []
    changed = True
    while changed:
        changed = False
        order = graph.order()
        graph.positions = {node: index for index, node in enumerate(order)}
        for node in order:
            for row in by_op.get(node.op, ()):
                if node not in graph:
                    break
                if row.apply(graph, node):
                    applied.append(row.name)
                    changed = True
                    break
        graph.prune()
    return applied
