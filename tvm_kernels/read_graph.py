"""An ONNX model as a `Graph`: every shape inferred, every constant folded, every low-bit payload checked.

Shapes are inferred node by node with the values of constants, so that shape arithmetic (Shape, Gather, Concat, Reshape)
is folded. A shape that stays unknown is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnx.shape_inference

from subbyte.dialect.decode import low_bit
from subbyte.dialect.function import Call, PackedWeights, find, function_of
from subbyte.dialect.function_calls import STANDARD_DOMAINS, opset_of
from subbyte.dialect.known_operators import QONNX, QUANTIZERS
from subbyte.dialect.names import DOMAIN
from subbyte.dialect.walk import label_of
from subbyte.errors import FormatError, ModelError, one_line
from subbyte.files import limits
from subbyte.onnx_files.attributes import check_node
from subbyte.runtime.manifest import MAX_RANK
from subbyte.tvm_kernels.error_context import working_on
from subbyte.tvm_kernels.folding import fold
from subbyte.tvm_kernels.graph import Graph, Node, Value
from subbyte.tvm_kernels.node_shapes import check_shapes
from subbyte.tvm_kernels.onnx_model import INPUT_TYPES, body_of
from subbyte.tvm_kernels.rewrites.code_values import NARROW
from subbyte.tvm_kernels.variadic import in_parts

Array = npt.NDArray[Any]
HINT_ELEMENTS = 4096  # constants up to this size take part in shape inference
CONTROL_FLOW = {"If", "Loop", "Scan"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
# UINT2 and INT2 are younger than the oldest onnx package we take.
_NARROW = {getattr(onnx.TensorProto, name.upper()): name for name in NARROW if hasattr(onnx.TensorProto, name.upper())}
_ELEMENTS = {name: element for element, name in _NARROW.items()} | {"bfloat16": onnx.TensorProto.BFLOAT16}


def read_graph(model: onnx.ModelProto, name: str | None = None) -> Graph:
    """The graph of a model from `load_model`; raises ModelError for what cannot be given a static shape."""
    opset = opset_of(model.opset_import)
    graph = Graph(name or model.graph.name or "model", opset)
    graph.metadata = {entry.key: entry.value for entry in model.metadata_props}
    read = {name for node in model.graph.node for name in node.input}
    for tensor in model.graph.initializer:
        data = _array(tensor)
        if tensor.name in read:  # here, so that it is named as in the file, whatever is folded of it
            _refuse_meaningless(tensor.name, data, infinite=False)
        declared = _NARROW.get(tensor.data_type, "")
        graph.add_value(tensor.name, data.dtype.name, data.shape, data=data, declared=declared)
    for value in model.graph.input:
        if value.name not in graph.values:
            kind = value.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            graph.add_value(value.name, dtype, [dim.dim_value for dim in kind.shape.dim])
            graph.inputs.append(value.name)
    for proto in model.graph.node:
        read_node(graph, proto)
    graph.outputs = [value.name for value in model.graph.output]
    if len(set(graph.outputs)) != len(graph.outputs):
        raise ModelError("the graph names one value as output twice; give each output its own name")
    for name in graph.outputs:
        if graph.values[name].dtype not in INPUT_TYPES:
            raise ModelError(
                f"output '{name}' is {graph.values[name].dtype}; outputs are one of {', '.join(sorted(INPUT_TYPES))}: "
                "put a Cast in front of it"
            )
    graph.onnx_names = frozenset(graph.values)
    graph.prune()
    _check_finite(graph)
    return graph


# What multiplies or divides by its constants: there an infinity only makes NaN. Elsewhere it is a mask or a bound.
MULTIPLIES = {
    *("Conv", "ConvTranspose", "MatMul", "Gemm", "Mul", "Div", "BatchNormalization", "LayerNormalization", "PRelu"),
    *QUANTIZERS,
}


def _check_finite(graph: Graph) -> None:
    """Raise ModelError, naming the tensor, for constants that are NaN, or infinite where they are multiplied by."""
    for node in graph.order():
        for name in node.inputs:
            data = graph.values[name].data if name else None
            if data is not None:
                _refuse_meaningless(name, data, infinite=_multiplies(node))
                if node.op == "Add" and np.isposinf(data).any():  # a bias; a mask adds minus infinity
                    _refuse_meaningless(name, data, infinite=True)


def _multiplies(node: Node) -> bool:
    function = find(node.op) if node.domain == DOMAIN else None
    name = f"{node.domain}.{node.op}" if node.domain else node.op
    return name in MULTIPLIES if function is None else function.finite


def _refuse_meaningless(name: str, data: Array, infinite: bool) -> None:
    """Raise ModelError if `data` holds NaN or, with `infinite`, infinities."""
    if not (np.issubdtype(data.dtype, np.floating) or data.dtype.name == "bfloat16"):
        return
    wrong = int((~np.isfinite(data) if infinite else np.isnan(data)).sum())
    if wrong:
        raise ModelError(
            f"tensor '{name}': {wrong} of its {data.size} elements are NaN or infinite, so the model's outputs would "
            "mean nothing. Train it again, at a lower learning rate, or export a checkpoint from before it diverged"
        )


def _array(tensor: onnx.TensorProto) -> Array:
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # to_array raises what NumPy raises on a payload that does not fit its shape
        raise ModelError(f"initializer '{tensor.name}' does not hold what its shape says: {error}") from error
    if array.dtype.name in NARROW:  # ml_dtypes: kept as bytes from here on
        return array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8)
    return array


def attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values; tensors as arrays."""
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        found[attribute.name] = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return found


def read_node(graph: Graph, proto: onnx.NodeProto) -> None:
    """Add a node whose inputs are in the graph: with the shapes of its outputs, or folded; raises ModelError."""
    label = label_of(proto)
    working_on("reading the file", proto)
    if proto.op_type in CONTROL_FLOW | RANDOM:
        raise ModelError(f"node '{label}' is {proto.op_type}; the compiler takes straight, deterministic graphs only")
    if any(graph.values[name].dtype == "object" for name in proto.input if name):
        raise _of_strings(label)
    domain = "" if proto.domain in STANDARD_DOMAINS else proto.domain
    add_results = OTHER_DOMAINS.get((domain, proto.op_type)) or (_dialect_call if domain == DOMAIN else None)
    attrs = attributes(proto)
    _check_channels(graph, proto, attrs)
    if not domain:
        check_node(proto)
        shapes = [graph.values[name].shape if name else None for name in proto.input]
        check_shapes(proto.op_type, label, shapes, attrs)
    if add_results is not None:
        add_results(graph, proto, attrs)
        if proto.output[0] in graph.values and graph.values[proto.output[0]].is_constant:
            return
    else:
        types = _infer(graph, proto)
        if not all(_is_static(types.get(output)) for output in proto.output if output):
            body = body_of(proto, {name: type_of(graph.values[name]) for name in proto.input if name}, graph.opset)
            if body:  # ONNX infers no shape of GroupNormalization
                add_body(graph, label, body, {name: name for name in (*proto.input, *proto.output)})
                return
        for output in proto.output:
            if output:
                _add_output(graph, label, output, types.get(output))
        if fold(graph, proto, attrs):
            return
        if parts := in_parts(graph, proto):
            for part in parts:
                read_node(graph, part)
            return
    _check_shapes(graph, label, proto)
    domain = "" if (domain, proto.op_type) in STANDARD_MEANING else domain
    graph.add(Node(proto.op_type, _given(graph, proto), list(proto.output), attrs, label, domain))


def _given(graph: Graph, proto: onnx.NodeProto) -> list[str]:
    """A node's inputs: an absent roi, scales or sizes of a Resize may be an empty tensor in the file."""
    if proto.op_type != "Resize" or proto.domain:
        return list(proto.input)
    return [name if name and graph.values[name].size else "" for name in proto.input]


def add_body(graph: Graph, label: str, body: Sequence[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Add sorted nodes that compute another: `names` are those of its inputs and outputs in the graph."""
    names = {"": "", **names}
    for inner in body:
        node = onnx.NodeProto()
        node.CopyFrom(inner)
        node.name = label
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name not in names:  # made in between
                    names[name] = graph.fresh(f"{label}/{name}")
                values[index] = names[name]
        read_node(graph, node)


# ---- shape inference ----


def type_of(value: Value) -> onnx.TypeProto:
    """The ONNX type of a value."""
    name = value.declared or value.dtype  # a zero point of 4 bits, kept in bytes, still makes codes of 4 bits
    element = _ELEMENTS.get(name) or onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))
    return onnx.helper.make_tensor_type_proto(element, value.shape)


def _infer(graph: Graph, proto: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
    schema = onnx.defs.get_schema(proto.op_type, graph.opset, "")
    inputs = {name: graph.values[name] for name in proto.input if name}
    hints = {
        name: onnx.numpy_helper.from_array(value.data, name)
        for name, value in inputs.items()
        if value.data is not None and value.size <= HINT_ELEMENTS
    }
    try:
        return onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {name: type_of(value) for name, value in inputs.items()},
            hints,
            opset_imports=[onnx.helper.make_opsetid("", graph.opset)],
        )
    except Exception as error:  # shape inference raises what its C++ raises
        raise ModelError(f"node '{label_of(proto)}' does not fit its inputs: {one_line(error)}") from error


def _check_channels(graph: Graph, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
    """ONNX's own inference takes the shapes of a convolution as they come, channels and bias unseen."""
    if proto.domain not in STANDARD_DOMAINS or proto.op_type not in ("Conv", "ConvInteger", "ConvTranspose"):
        return
    shapes = [graph.values[name].shape if name else () for name in proto.input]
    x, weight = shapes[0], shapes[1]
    groups = int(attrs.get("group", 1))
    if len(x) < 3 or len(weight) != len(x) or groups < 1:
        raise ModelError(
            f"node '{label_of(proto)}': input {list(x)}, weights {list(weight)} and {groups} group(s) make "
            "no convolution; export it again"
        )
    turned = proto.op_type == "ConvTranspose"
    outputs = weight[1] * groups if turned else weight[0]
    fits = x[1] == (weight[0] if turned else weight[1] * groups) and (weight[0] if turned else outputs) % groups == 0
    if not fits:
        raise ModelError(
            f"node '{label_of(proto)}' does not fit its inputs: {x[1]} channels in {list(x)}, but weights "
            f"of shape {list(weight)} in {groups} group(s); export it again"
        )
    if proto.op_type != "ConvInteger" and len(shapes) > 2 and proto.input[2] and shapes[2] != (outputs,):
        raise ModelError(
            f"node '{label_of(proto)}' does not fit its inputs: its bias has shape {list(shapes[2])}, "
            f"expected [{outputs}]; export it again"
        )


def _is_static(kind: onnx.TypeProto | None) -> bool:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)


def _add_output(graph: Graph, label: str, name: str, kind: onnx.TypeProto | None) -> None:
    if kind is None or not _is_static(kind):
        raise ModelError(
            f"the shape of '{name}' (node '{label}') depends on run-time values; export with fixed shapes, "
            "for instance by replacing data-dependent indexing"
        )
    tensor = kind.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        raise _of_strings(label)
    shape = [dim.dim_value for dim in tensor.shape.dim]
    if prod(shape) > limits.ELEMENTS:
        raise ModelError(
            f"'{name}' (node '{label}') would have shape {shape}, {prod(shape)} elements; at most {limits.ELEMENTS} "
            "are accepted: make the tensor smaller"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    graph.add_value(name, dtype, shape)


def _of_strings(label: str) -> ModelError:
    return ModelError(f"node '{label}' works on strings; only numbers are compiled: do it before the model")


def _check_shapes(graph: Graph, label: str, proto: onnx.NodeProto) -> None:
    """Raise ModelError for results at run time that hold nothing, or have more axes than a bundle's tensors."""
    values = [graph.values[name] for name in proto.output if name]
    for value in values:
        name, shape = value.name, value.shape
        if 0 in shape and any(other.size for other in values):  # one part of a Split, say
            value.data = np.empty(shape, value.dtype)
        elif 0 in shape:
            raise ModelError(
                f"'{name}' (node '{label}') has shape {list(shape)}: it holds no element. Remove the node, and "
                "what reads it, from the model"
            )
        if len(shape) > MAX_RANK:
            raise ModelError(f"'{name}' (node '{label}') has {len(shape)} axes; at most {MAX_RANK} are handled")


# ---- functions of domain subbyte and operators of other domains ----


def _need(graph: Graph, proto: onnx.NodeProto, index: int, what: str) -> Array:
    name = proto.input[index] if index < len(proto.input) else ""
    data = graph.constant_of(name)
    if data is None:
        raise ModelError(f"node '{label_of(proto)}': {what} ('{name}') must be a constant of the file")
    return data


def _like_input(graph: Graph, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
    """QONNX's are float32; onnxruntime has some in float16, too."""
    x = graph.values[proto.input[0]]
    graph.add_value(proto.output[0], x.dtype if proto.domain == "com.microsoft" else "float32", x.shape)


def _dialect_call(graph: Graph, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
    """The results of a function of the dialect; of weights, themselves."""
    function = function_of(proto)
    if function is None:
        return
    if isinstance(function.role, PackedWeights):
        _decode(graph, proto, function.role)
        return
    values = [graph.values[name] for name in proto.input]
    call = Call(tuple(value.shape for value in values), tuple(value.data for value in values))
    try:
        shapes = function.shapes(call)
    except ValueError as error:
        found = ", ".join(str(list(value.shape)) for value in values)
        raise ModelError(f"node '{label_of(proto)}': inputs {found} do not fit: {error}") from error
    for name, shape in zip(proto.output, shapes, strict=False):  # a call may leave the last ones out
        if name:
            graph.add_value(name, "float32", shape)


def _nbits_product(graph: Graph, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
    x = graph.values[proto.input[0]]
    graph.add_value(proto.output[0], x.dtype, (*x.shape[:-1], int(attrs["N"])))


def _decode(graph: Graph, proto: onnx.NodeProto, weights: PackedWeights) -> None:
    """Decode<Format> and Dequantize<Format> become a weight; a payload that does not fit its shape is refused."""
    parts = ("the packed payload", "the shape", "the scale", "the group size")
    inputs = [_need(graph, proto, index, part) for index, part in enumerate(parts[: len(proto.input)])]
    for name, scale in zip(proto.input[2:3], inputs[2:3], strict=True):
        _refuse_meaningless(name, scale, infinite=True)
    try:
        tensor = low_bit(weights, inputs).with_scales_of_rows()
        tensor.check()
    except FormatError as error:
        raise ModelError(f"node '{label_of(proto)}': {error}. The file is damaged, export it again") from error
    order = tuple(range(len(tensor.shape)))
    graph.add_value(proto.output[0], "float32", tensor.shape, weight=tensor, order=order, scaled=weights.by_group)


def _quantize_or_dequantize(graph: Graph, proto: onnx.NodeProto, attrs: dict[str, Any]) -> None:
    """What onnxruntime's quantizer writes below opset 21 for 4 and 16 bits; without `axis` there is one scale."""
    x, scale, *rest = (graph.values[name] if name else None for name in proto.input)
    if x is None or scale is None:
        raise ModelError(f"node '{label_of(proto)}' lacks its input or its scale; export it again")
    axis = attrs.get("axis")
    per_axis = axis is not None and -len(x.shape) <= axis < len(x.shape) and scale.shape == (x.shape[axis],)
    if scale.size != 1 and not per_axis:
        raise ModelError(
            f"node '{label_of(proto)}': scales of shape {list(scale.shape)} do not fit "
            f"{'axis ' + str(axis) if axis is not None else 'one scale for all'} of {list(x.shape)}; export it again"
        )
    zero = rest[0] if rest else None
    coded = "uint8" if zero is None else zero.declared or zero.dtype
    graph.add_value(proto.output[0], coded if proto.op_type == "QuantizeLinear" else scale.dtype, x.shape)


# Operators of other domains, of which ONNX infers no shape.
OTHER_DOMAINS: dict[tuple[str, str], Callable[[Graph, onnx.NodeProto, dict[str, Any]], None]] = {
    ("com.microsoft", "MatMulNBits"): _nbits_product,
    ("com.microsoft", "Gelu"): _like_input,
    ("com.microsoft", "QuantizeLinear"): _quantize_or_dequantize,
    ("com.microsoft", "DequantizeLinear"): _quantize_or_dequantize,
    (QONNX, "Quant"): _like_input,
    (QONNX, "BipolarQuant"): _like_input,
}
# These mean what the operators of the same name mean in opset 21.
STANDARD_MEANING = {("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")}
