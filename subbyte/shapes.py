"""The shapes of all values of an ONNX model, by ONNX's own inference; with the values of shapes, where that is safe.

What is computed of shapes (Shape, Gather, Slice, Concat before a Reshape) is followed by ONNX in C++, which does not
end, or ends the process, at a Slice whose step has more than 32 bits (onnx 1.23). Such a step selects one element at
most, and no exporter writes it: a model whose steps are not all known to be small is inferred without those values.
"""

from __future__ import annotations

import numpy as np
import onnx

from subbyte.onnx_walk import all_graphs, every_node, subgraphs

LARGEST_STEP = 2**31 - 1


def with_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """A copy with the shapes that follow from those of its inputs.

    Raises what ONNX raises for shapes that do not fit each other (InferenceError, RuntimeError, ValueError): with
    `strict` for every node, else for some.
    """
    return onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=_steps_are_small(model))


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
