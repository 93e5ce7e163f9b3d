"""Describes an ONNX file by layer: formats, bits per weight, MACs, bytes compared with float32.

Reads the dialect and QDQ files. To describe another representation of weights, add a row to `_WEIGHTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from subbyte.dialect.decode import weights_of
from subbyte.dialect.function import Quantizer, Values, function_of
from subbyte.dialect.function_calls import foreign_functions, opset_of
from subbyte.dialect.graph import GraphView, attribute, view
from subbyte.dialect.known_operators import QONNX, QUANTIZERS, SHAPE_OF_INPUT, full_name
from subbyte.dialect.layers import CODE_PRESERVING, PRODUCTS, layers
from subbyte.dialect.macs import MACS, UnknownShape
from subbyte.dialect.payloads import tensor_bytes, with_payloads, without_payloads
from subbyte.dialect.shapes import with_shapes
from subbyte.dialect.state import states
from subbyte.dialect.walk import label_of, subgraphs
from subbyte.errors import ModelError, one_line
from subbyte.export.onnx_file import load_onnx
from subbyte.formats import PerGroup
from subbyte.onnx_files.loader import Source, open_onnx


@dataclass(frozen=True)
class LayerRow:
    """One product of the network: Conv, MatMul, Gemm, ConvInteger or MatMulInteger."""

    name: str
    op: str
    weight_format: str  # "ternary", "int4/128" (groups of 128), "float32"; "-" for a product of two run-time values
    activation_format: str  # "uint8", "int8 per token", "binary", "float32"
    shape: tuple[int, ...]  # of the weight input of the operator
    bits_per_weight: float  # payload and scales
    macs: int  # of one run of the file, with its batch
    parameter_bytes: int  # payload, scales and bias
    float_bytes: int  # the same weights and bias in float32


@dataclass(frozen=True)
class Inspection:
    """A file: its layers in graph order, and its size compared with the same parameters in float32."""

    path: str
    layers: tuple[LayerRow, ...]
    inputs: dict[str, tuple[int, ...]]  # 0 for a dynamic size
    outputs: dict[str, tuple[int, ...]]
    states: dict[str, str]  # inputs of a run, each with the output that is its value in the next run
    metadata: dict[str, str]
    opset: int
    ir_version: int
    nodes: int
    macs: int
    parameters: int  # elements of all weights and biases, without scales and zero points
    parameter_bytes: int  # all tensors of the file
    float_bytes: int  # all parameters in float32
    file_bytes: int  # with external data
    warnings: tuple[str, ...] = ()  # what the figures omit, and why

    @property
    def smaller(self) -> float:
        """The size of the parameters in float32, relative to the size of the file."""
        return self.float_bytes / max(1, self.file_bytes)


@dataclass(frozen=True)
class _Weight:
    """The constant second operand of a product."""

    format: str
    shape: tuple[int, ...]
    nbytes: int
    stored: tuple[str, ...]  # the initializers that it consists of


def inspect(path: Source) -> Inspection:
    """Describe an ONNX file.

    An unknown shape is a warning; its MACs count 0. Raises ModelError for a file that cannot be read, unknown
    operators, and inconsistent shapes.
    """
    file = open_onnx(path)
    model = load_onnx(file)
    graph = view(_inferred(model))
    layers = tuple(_layers(graph))
    tensors = list(model.graph.initializer)
    weights = [weight for node in graph.nodes for weight in [_decoded(graph, node)] if weight is not None]
    payloads = {weight.stored[0]: weight.shape for weight in weights}
    scales = _scales(graph)
    parameters = [t for t in tensors if _is_parameter(t) and t.name not in scales]
    elements = sum(prod(payloads.get(t.name, tuple(t.dims))) for t in parameters)
    return Inspection(
        path="" if file.path is None else str(file.path),
        layers=layers,
        inputs=_shapes(model.graph.input),
        outputs=_shapes(graph.model.graph.output),
        states={state.input: state.output for state in states(model)},
        metadata={entry.key: entry.value for entry in model.metadata_props},
        opset=opset_of(model.opset_import),
        ir_version=model.ir_version,
        nodes=len(model.graph.node),
        macs=sum(layer.macs for layer in layers) + sum(_macs(graph, node) or 0 for node in _others(graph)),
        parameters=elements,
        parameter_bytes=sum(tensor_bytes(t) for t in tensors),
        float_bytes=4 * elements,
        file_bytes=file.nbytes + file.external_bytes,
        warnings=(*foreign_functions(file.model), *_not_counted(graph), *_no_layers(graph), *_meaningless(tensors)),
    )


def _others(graph: GraphView) -> Iterable[onnx.NodeProto]:
    """The products that are not in `Inspection.layers`, and the calls of dialect functions."""
    kinds = MACS.keys() - set(PRODUCTS)
    return (node for node in graph.nodes if full_name(node) in kinds or function_of(node) is not None)


def _no_layers(graph: GraphView) -> Iterable[str]:
    """A warning for products that are not layers, with the MACs that they add to the sum."""
    kinds: dict[str, list[onnx.NodeProto]] = {}
    for node in _others(graph):
        if function_of(node) is None:
            kinds.setdefault(full_name(node), []).append(node)
    for kind, nodes in kinds.items():
        counted = sum(_macs(graph, node) or 0 for node in nodes)
        consequence = f"{counted:,} MACs are in the sum" if counted else "MACs are counted as 0"
        yield f"{kind} {_first_of(nodes)}: not among the layers, and {consequence}"
    inside = [node for node in graph.nodes if any(full_name(n) in MACS for g in subgraphs([node]) for n in g.node)]
    if inside:
        yield (
            f"{inside[0].op_type} {_first_of(inside)}: products in a subgraph, whose MACs are counted as 0: the number "
            "of iterations is only known at run time"
        )


def _first_of(nodes: Sequence[onnx.NodeProto]) -> str:
    return f"'{label_of(nodes[0])}'" + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")


def _meaningless(tensors: Iterable[onnx.TensorProto]) -> Iterable[str]:
    for tensor in tensors:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            wrong = int(np.isnan(onnx.numpy_helper.to_array(tensor)).sum())
            if wrong:
                yield f"tensor '{tensor.name}' contains {wrong} NaN, which `subbyte compile` refuses"


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with inferred shapes; those stored in the file, which may be outdated, only where inference gives none."""
    plain = without_payloads(model)
    for node in plain.graph.node:
        if full_name(node) in SHAPE_OF_INPUT:
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1]))
    del plain.graph.value_info[:]
    for output in plain.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        plain = with_shapes(plain, strict=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"the shapes of the file do not fit each other: {one_line(error)}; export it again") from error
    del plain.graph.node[:]
    plain.graph.node.extend(without_payloads(model).graph.node)
    inferred = {info.name for info in plain.graph.value_info}
    plain.graph.value_info.extend(info for info in model.graph.value_info if info.name not in inferred)
    for output, stated in zip(plain.graph.output, model.graph.output, strict=True):
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(stated)
    for value in (*plain.graph.value_info, *plain.graph.output):
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if min(shape, default=0) < 0:  # such as of a kernel larger than its input
            raise ModelError(
                f"the shapes of the file do not fit each other: '{value.name}' would be {shape}; export it again"
            )
    return with_payloads(plain, model)


def _not_counted(graph: GraphView) -> Iterable[str]:
    """A warning for each dynamic input; if there is none, a warning for layers and calls of unknown shapes."""
    dynamic = False
    for value in graph.model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in graph.initializers and not all(dim.HasField("dim_value") for dim in dims):
            shape = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
            dynamic = True
            yield (
                f"input '{value.name}' has a dynamic shape [{shape}]: MACs that depend on it are counted as 0, and "
                "`subbyte compile` needs a static shape"
            )
    products = (n for n in graph.nodes if full_name(n) in PRODUCTS or function_of(n) is not None)
    unknown = [] if dynamic else [node for node in products if _macs(graph, node) is None]
    if unknown:
        yield f"{full_name(unknown[0])} {_first_of(unknown)}: its shapes are unknown: MACs are counted as 0"


def _is_parameter(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor may be a parameter: shapes and axes are int64 in ONNX, parameters are not."""
    return tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)


_IN_STEPS = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


def _scales(graph: GraphView) -> set[str]:
    """The initializers that are scales, zero points and limits: the same network in float32 does not have them."""
    steps: set[str] = set()  # values in units of a step: codes, their sums and products, and those times run-time steps
    read: dict[str, list[bool]] = {}
    for node in graph.nodes:
        function = function_of(node)
        ours = function is not None and not isinstance(function.role, Values)
        every = range(len(node.input))
        values: Collection[int] = (0,) if function is not None else QUANTIZERS.get(full_name(node), every)
        counts = not node.domain and not steps.isdisjoint(node.input)
        if counts and node.op_type == "Mul":
            constants = [name for name in node.input if graph.constant(name) is not None]
            values, counts = () if constants else values, not constants
        elif counts:
            counts = node.op_type in {*CODE_PRESERVING, "Cast", *PRODUCTS, "Round", "ReduceSum"}
        if counts or ours or node.op_type in _IN_STEPS:
            steps.update(node.output)
        for index, name in enumerate(node.input):
            read.setdefault(name, []).append(index not in values)
    return {name for name, uses in read.items() if all(uses) and name in graph.initializers}


def _shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


# ---- layers ----


def _layers(graph: GraphView) -> Iterable[LayerRow]:
    for layer in layers(graph):
        node, weight = layer.product, _weight(graph, layer.weight)
        _check_channels(graph, node)
        elements = prod(weight.shape) if weight else 0
        scale, bias = (sum(_elements(graph, name) for name in names) for names in (layer.scales, layer.bias))
        stored = 0 if weight is None else weight.nbytes + 4 * scale
        yield LayerRow(
            name=node.name,
            op=node.op_type,
            weight_format=weight.format if weight else "-",
            activation_format=_activations(graph, layer.activations),
            shape=weight.shape if weight else (),
            bits_per_weight=8 * stored / elements if elements else 0.0,
            macs=_macs(graph, node) or 0,
            parameter_bytes=stored + 4 * bias,
            float_bytes=4 * (elements + bias),
        )


def _check_channels(graph: GraphView, node: onnx.NodeProto) -> None:
    """Raise ModelError for a convolution whose channels do not match, which shape inference does not check."""
    data, weight = graph.shape(node.input[0]), graph.shape(node.input[1])
    groups = attribute(node, "group", 1)
    if node.op_type.startswith("Conv") and data and weight and data[1:2] != (weight[1] * groups,):
        raise ModelError(
            f"node '{label_of(node)}' does not fit its inputs: input {list(data)}, but weights of shape "
            f"{list(weight)} in {groups} group(s); export it again"
        )


def _weight(graph: GraphView, name: str) -> _Weight | None:
    """The weight of a constant value; None for a run-time value."""
    node = graph.producers.get(name)
    if name in graph.initializers:
        tensor = graph.initializers[name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        return _Weight(kind, tuple(tensor.dims), tensor_bytes(tensor), (name,))
    return None if node is None else _decoded(graph, node)


def _from_decoder(graph: GraphView, node: onnx.NodeProto) -> _Weight:
    tensor = graph.low_bit(node)
    name, nbytes = tensor.format.name, tensor.packed.nbytes
    if isinstance(tensor.granularity, PerGroup):
        name, nbytes = f"{name}/{tensor.granularity.size}", tensor.nbytes
    return _Weight(name, tensor.shape, nbytes, tuple(node.input))


def _from_dequantize_linear(graph: GraphView, node: onnx.NodeProto) -> _Weight | None:
    if node.input[0] not in graph.initializers:
        return None
    parts = [graph.initializers[name] for name in node.input if name in graph.initializers]
    block = attribute(node, "block_size", 0)
    kind = onnx.TensorProto.DataType.Name(parts[0].data_type).lower() + (f"/{block}" if block else "")
    return _Weight(kind, tuple(parts[0].dims), sum(tensor_bytes(t) for t in parts), tuple(node.input))


def _from_qonnx(graph: GraphView, node: onnx.NodeProto) -> _Weight | None:
    """Float32 in the file, rounded to a low-bit format when it is run."""
    tensor = graph.initializers.get(node.input[0])
    if tensor is None:
        return None
    return _Weight(_qonnx_format(graph, node), tuple(tensor.dims), tensor_bytes(tensor), (node.input[0],))


def _qonnx_format(graph: GraphView, node: onnx.NodeProto) -> str:
    bits = graph.constant(node.input[3]) if len(node.input) > 3 else None
    if node.op_type == "BipolarQuant":
        return "binary"
    if bits is None or np.size(bits) != 1:
        return "codes"
    return f"{'' if attribute(node, 'signed', 1) else 'u'}int{float(bits.reshape(())):g}"


def _decoded(graph: GraphView, node: onnx.NodeProto) -> _Weight | None:
    if weights_of(node) is not None:
        return _from_decoder(graph, node)
    read = _WEIGHTS.get((node.domain, node.op_type))
    return None if read is None else read(graph, node)


_WEIGHTS: dict[tuple[str, str], Callable[[GraphView, onnx.NodeProto], _Weight | None]] = {
    ("", "DequantizeLinear"): _from_dequantize_linear,
    ("com.microsoft", "DequantizeLinear"): _from_dequantize_linear,  # 4 bits below opset 21, by onnxruntime
    **{(QONNX, op): _from_qonnx for op in ("Quant", "IntQuant", "BipolarQuant")},
}


def _activations(graph: GraphView, names: Iterable[str]) -> str:
    """The format of the operand that has the elements of these values; float32 if any of them is."""
    formats = sorted({_activation(graph, name) for name in names})
    return "float32" if not formats or "float32" in formats else ", ".join(formats)


def _activation(graph: GraphView, name: str) -> str:
    node = graph.producers.get(name)
    if node is None or node.output[0] != name:  # the other outputs of quantizers are steps and zero points
        return "float32"
    function = function_of(node)
    if function is not None and isinstance(function.role, Quantizer):
        return function.role.codes(*map(graph.constant, node.input))
    if node.op_type == "DynamicQuantizeLinear":
        return "uint8 dynamic"
    if (node.domain, node.op_type) in _WEIGHTS and node.domain == QONNX:
        return _qonnx_format(graph, node)
    if node.op_type == "DequantizeLinear":
        source = graph.producers.get(node.input[0])
        zero = graph.initializers.get(node.input[2]) if len(node.input) > 2 else None
        if source is not None and source.op_type in ("QuantizeLinear", "Cast", *CODE_PRESERVING):
            return onnx.TensorProto.DataType.Name(zero.data_type).lower() if zero is not None else "uint8"
    return "float32"


def _elements(graph: GraphView, name: str) -> int:
    value = graph.constant(name)
    node = graph.producers.get(name)
    if value is None and node is not None and node.op_type == "DequantizeLinear":
        value = graph.constant(node.input[0])
    return 0 if value is None else int(np.size(value))


def _macs(graph: GraphView, node: onnx.NodeProto) -> int | None:
    """The MACs of a product or of a dialect function, from its shapes; None if a shape that they need is unknown."""
    function = function_of(node)
    if function is not None:
        call = graph.call(node)
        return None if call is None else function.macs(call)
    try:
        return MACS[full_name(node)](graph.shapes_of(node))
    except UnknownShape:
        return None
