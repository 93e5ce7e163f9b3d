"""Checks of attribute values that ONNX documents but does not check; some make its C++ shape inference crash.

They run for every node when a file is loaded, and again after functions, which may have attributes, are inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from subbyte.dialect.function_calls import STANDARD_DOMAINS
from subbyte.dialect.walk import every_node, label_of
from subbyte.errors import ModelError

_FLAGS = """
    align_corners allowzero antialias broadcast ceil_mode center_point_box count_include_pad detect_negative
    detect_positive exclude_outside exclusive fmod input_forget interleaved inverse is_causal is_test keepdims largest
    layout linear_before_reset new_axis noop_with_empty_axes onesided output_sequence periodic reverse saturate
    select_last_index sorted spatial storage_order training_mode transA transB upper
"""
FLAGS = frozenset(_FLAGS.split())  # 0 or 1; engines differ in what any other number means
INT32 = range(-(2**31), 2**31)


def check_attributes(model: onnx.ModelProto) -> None:
    """Raise ModelError for the first node with an attribute that is not what its operator's text says."""
    for node in every_node(model):
        check_node(node)
    for node in every_node(model):
        if node.op_type == "LayerNormalization" and any(a.name == "axis" and a.ref_attr_name for a in node.attribute):
            _check_parameters(model)
            return


def check_node(node: onnx.NodeProto) -> None:
    """As `check_attributes`, of one node."""
    if node.domain not in STANDARD_DOMAINS:
        return
    for attribute in node.attribute:
        name, value, parameter = attribute.name, attribute.i, attribute.ref_attr_name
        if name in FLAGS and attribute.type == onnx.AttributeProto.INT and not parameter and value not in (0, 1):
            raise _wrong(node, name, value, "0 or 1")
        if (node.op_type, name) not in FATAL:
            continue
        wanted, fits = FATAL[node.op_type, name](node)
        if parameter and name != "axis":
            raise _wrong(node, name, f"the parameter '{parameter}' of a function", "a number")
        if not parameter and not fits(value):
            raise _wrong(node, name, value, wanted)


# What reads or writes memory of others in ONNX's shape inference (onnx 1.23) where it is something else.
Wanted = tuple[str, Callable[[int], bool]]
FATAL: Mapping[tuple[str, str], Callable[[onnx.NodeProto], Wanted]] = {
    ("Split", "num_outputs"): lambda node: (
        f"{len(node.output)}, as many as it has outputs",
        lambda value: value == len(node.output),
    ),
    ("GatherND", "batch_dims"): lambda node: ("0 or more", lambda value: value in INT32 and value >= 0),
    ("LayerNormalization", "axis"): lambda node: ("an axis of its input", lambda value: value in INT32),
}


def _check_parameters(model: onnx.ModelProto) -> None:
    """That whatever a call hands to a function has 32 bits, as an axis has; raises ModelError."""
    for place, attribute in _parameters(model):
        if attribute.i not in INT32:
            raise ModelError(
                f"{place} hands {attribute.i} as '{attribute.name}' to a function that may take it for an axis; "
                "expected a number of 32 bits. Export the model again"
            )


def _parameters(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.AttributeProto]]:
    for node in every_node(model):
        if node.domain not in STANDARD_DOMAINS:
            yield from ((f"node '{label_of(node)}'", attribute) for attribute in node.attribute)
    for function in model.functions:
        yield from ((f"function '{function.name}'", attribute) for attribute in function.attribute_proto)


def _wrong(node: onnx.NodeProto, name: str, value: object, wanted: str) -> ModelError:
    return ModelError(
        f"node '{label_of(node)}' ({node.op_type}): its attribute {name} is {value}, expected {wanted}. Export the "
        "model again"
    )
