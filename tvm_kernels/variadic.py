"""Operators of many inputs or outputs, as several of few: a call takes 32 arguments, and TVM's time grows faster.

A Concat or Split becomes a tree, so that an element is copied once for each of its levels. A Sum becomes Adds in the
order of the file, which our kernels take as their steps. Max and Min go on from left to right, what is known in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx.helper

from subbyte.dialect.function_calls import STANDARD_DOMAINS
from subbyte.dialect.walk import label_of
from subbyte.tvm_kernels.graph import Graph

MOST = 16  # inputs or outputs of one node
EXTREMES = ("Max", "Min")


def in_parts(graph: Graph, proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that a standard node becomes, whose values are in the graph, in order; empty for one that stays."""
    label = label_of(proto)
    if proto.domain not in STANDARD_DOMAINS:
        return []
    if proto.op_type == "Concat" and len(proto.input) > MOST:
        return list(_concat(graph, proto, label))
    if proto.op_type == "Sum" and len(proto.input) > 1:
        return list(_added(graph, proto, label))
    if proto.op_type in EXTREMES:
        return list(_extreme(graph, proto, label))
    if proto.op_type == "Split" and len(proto.output) > MOST and all(proto.output):
        return list(_split(graph, proto, label))
    return []


def _groups(count: int) -> list[slice]:
    """At most MOST runs of `count` things, of one length but for the last."""
    length = -(-count // MOST)
    return [slice(start, start + length) for start in range(0, count, length)]


def _like(proto: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    made = onnx.NodeProto(op_type=proto.op_type, name=proto.name, input=inputs, output=outputs)
    made.attribute.extend(a for a in proto.attribute if a.name != "num_outputs")
    return made


def _concat(graph: Graph, proto: onnx.NodeProto, label: str) -> Iterator[onnx.NodeProto]:
    names = list(proto.input)
    while len(names) > MOST:
        parts = [names[start : start + MOST] for start in range(0, len(names), MOST)]
        names = []
        for part in parts:
            names.append(graph.fresh(label) if len(part) > 1 else part[0])
            if len(part) > 1:
                yield _like(proto, part, names[-1:])
    yield _like(proto, names, proto.output)


def _added(graph: Graph, proto: onnx.NodeProto, label: str) -> Iterator[onnx.NodeProto]:
    done = proto.input[0]
    for name in proto.input[1:-1]:
        made = graph.fresh(label)
        yield onnx.NodeProto(op_type="Add", name=proto.name, input=[done, name], output=[made])
        done = made
    yield onnx.NodeProto(op_type="Add", name=proto.name, input=[done, proto.input[-1]], output=proto.output)


def _extreme(graph: Graph, proto: onnx.NodeProto, label: str) -> Iterator[onnx.NodeProto]:
    """Known operands of one shape become one, which changes no maximum; the others follow, at most MOST at a time."""
    known: dict[tuple[int, ...], list[str]] = {}
    rest = []
    for name in proto.input:
        data = graph.constant_of(name)
        if data is None:
            rest.append(name)
        else:
            known.setdefault(data.shape, []).append(name)
    if rest:  # a node of constants that is not computed has its reasons
        for names in known.values():
            rest.append(graph.fresh(label) if len(names) > 1 else names[0])
            if len(names) > 1:
                yield _like(proto, names, rest[-1:])
    rest = rest or list(proto.input)
    if len(proto.input) == len(rest) <= MOST:
        return
    done, rest = rest[:MOST], rest[MOST:]
    while rest:
        made = graph.fresh(label)
        yield _like(proto, done, [made])
        done, rest = [made, *rest[: MOST - 1]], rest[MOST - 1 :]
    yield _like(proto, done, proto.output)


def _split(graph: Graph, proto: onnx.NodeProto, label: str) -> Iterator[onnx.NodeProto]:
    axis = next((a.i for a in proto.attribute if a.name == "axis"), 0)
    waiting = [(proto.input[0], list(proto.output), [graph.values[name].shape[axis] for name in proto.output])]
    while waiting:
        source, names, lengths = waiting.pop()
        groups = _groups(len(names))
        outputs = []
        for group in groups:
            several = len(names[group]) > 1
            outputs.append(graph.fresh(label) if several else names[group][0])
            if several:
                waiting.append((outputs[-1], names[group], lengths[group]))
        each = graph.constant(np.array([sum(lengths[group]) for group in groups], np.int64), label)
        yield _like(proto, [source, each], outputs)
