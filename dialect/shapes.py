"""The shapes of all values of an ONNX model, by ONNX's own inference; with the values of shapes, where that is safe.

What is computed of shapes (Shape, Gather, Slice, Concat before a Reshape) is followed by ONNX in C++, which does not
end, or ends the process, at a Slice whose step has more than 32 bits (onnx 1.23). Such a step selects one element at
most, and no exporter writes it: a model whose steps are not all known to be small is inferred without those values. So
is one whose Concats make many elements: 40 of them, each of a vector with itself, are 2^40 elements in 2 kB of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import prod

import numpy as np
import onnx

from subbyte.dialect.walk import all_graphs, every_node, subgraphs

LARGEST_STEP = 2**31 - 1
MOST_JOINED = 2**20  # elements that all Concats of vectors make, of which ONNX takes some 100 bytes each
SHAPE = 64  # axes, more than a shape of any engine has

Functions = dict[tuple[str, str, str], onnx.FunctionProto]


def with_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """A copy with the shapes that follow from those of its inputs.

    Raises what ONNX raises for shapes that do not fit each other (InferenceError, RuntimeError, ValueError): with
    `strict` for every node, else for some.
    """
    followed = _steps_are_small(model) and _vectors_are_small(model)
    return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=followed)


def _steps_are_small(model: onnx.ModelProto) -> bool:
    """Whether every step of a Slice is a constant of the file, near 0."""
    steps = {node.input[4] for node in every_node(model) if node.op_type == "Slice" and len(node.input) > 4}
    steps.discard("")
    if not steps:
        return True
    known: set[str] = set()
    graphs = [*all_graphs(model.graph), *(graph for f in model.functions for graph in subgraphs(f.node))]
    handed = {name for function in model.functions for name in function.input}
    handed |= {value.name for graph in graphs[1:] for value in graph.input}
    if steps & handed:  # whatever a constant of that name holds elsewhere
        return False
    constants = [(tensor.name, tensor) for graph in graphs for tensor in graph.initializer]
    for node in every_node(model):
        for name in steps.intersection(node.output):
            attribute = node.attribute[0] if node.op_type == "Constant" and len(node.attribute) == 1 else None
            if attribute is None or attribute.name not in ("value", "value_int", "value_ints"):
                return False
            values = attribute.t if attribute.name == "value" else _tensor([attribute.i, *attribute.ints])
            constants.append((name, values))
    for name, tensor in constants:
        if name in steps:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.kind != "i" or (np.abs(array.astype(np.float64)) > LARGEST_STEP).any():
                return False
            known.add(name)
    return steps == known


def _tensor(values: list[int]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, np.int64))


def _vectors_are_small(model: onnx.ModelProto) -> bool:
    """Whether the vectors that Concat makes of constants and shapes have few elements in all."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes = {tensor.name: prod(tensor.dims) for tensor in model.graph.initializer}
    return _joined(model.graph.node, sizes, functions) <= MOST_JOINED


@cache
def _is_followed(op_type: str) -> bool:
    """Whether ONNX computes results of the operator from values that it knows."""
    known = onnx.defs.has(op_type)
    return known and bool(onnx.defs.get_schema(op_type).has_data_propagation_function)


def _joined(nodes: Iterable[onnx.NodeProto], sizes: dict[str, int], functions: Functions) -> int:
    """Elements that the Concats among `nodes` make of values that ONNX follows; `sizes`, of values, gets the results'.

    Of the operators whose values it follows, only Concat makes more elements than its largest input has.
    """
    joined = 0
    for node in nodes:
        given = [sizes.get(name, 0) for name in node.input]
        size = SHAPE if node.op_type == "Shape" else max(given, default=0) if _is_followed(node.op_type) else 0
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            inner = dict(zip(function.input, given, strict=False))
            joined += _joined(function.node, inner, functions)
            size = max(inner.values(), default=0)
        elif node.op_type == "Concat" and all(a.i <= 0 for a in node.attribute if a.name == "axis"):
            size = sum(given)
            joined += size
        elif node.op_type == "Constant":
            size = max((prod(a.t.dims) + len(a.ints) + len(a.floats) for a in node.attribute), default=0)
        for graph in (graph for a in node.attribute for graph in (a.g, *a.graphs)):
            sizes.update((tensor.name, prod(tensor.dims)) for tensor in graph.initializer)
            joined += _joined(graph.node, sizes, functions)
            size = max([size, *(sizes.get(value.name, 0) for value in graph.output)])
        sizes.update(dict.fromkeys(node.output, min(size, MOST_JOINED + 1)))
    return joined
