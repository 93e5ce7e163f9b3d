"""Baselines of a quantized model: the same network in float32, and onnxruntime's int8 quantization of that.

The bundle is compared with them in speed and size, as the float32 and int8 deployments of the same architecture.
Quantizers become the identity, so the float baseline of a binary network has the same layers and cost, but other
outputs. A file in which a quantizer would remain (QONNX, MatMulNBits, QLinearConv) is refused.

`float_baseline` visits the nodes once, in order. `_RULES` has a row for each operator that is not copied unchanged. A
value of the file may be represented by another value and a factor (codes are x times the inverse step); the factor is
propagated through data movement and folded into the next weight.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from subbyte.dialect.example_inputs import inputs_of
from subbyte.dialect.function import Dequantized, Rescale, function_of
from subbyte.dialect.function_calls import opset_of
from subbyte.dialect.graph import GraphView, attribute, view
from subbyte.dialect.known_operators import QUANTIZERS, full_name
from subbyte.dialect.layers import Layer, is_integer_product, layers
from subbyte.dialect.names import DOMAIN
from subbyte.dialect.state import declare_states, states
from subbyte.dialect.walk import all_nodes, every_node
from subbyte.errors import ModelError, UsageError
from subbyte.export.onnx_file import load_onnx
from subbyte.export.output_channels import OutputChannels
from subbyte.export.stored_states import with_float_states
from subbyte.onnx_files.loader import Source
from subbyte.onnx_files.onnxruntime import onnxruntime
from subbyte.onnx_files.saturation import onnxruntime_saturates

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Value:
    """A value of the file, as a value of the baseline times a factor."""

    name: str
    factor: float = 1.0


@dataclass
class _Baseline:
    """The float graph under construction."""

    graph: GraphView
    values: dict[str, _Value] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)  # by value of the file
    steps: set[str] = field(default_factory=set)  # steps of per-token quantizers: 1 in the baseline
    done: set[str] = field(default_factory=set)  # first outputs of nodes that are folded into an earlier one
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    stored: dict[tuple[tuple[int, ...], bytes], list[str]] = field(default_factory=dict)  # by shape and content
    layers: dict[str, Layer] = field(default_factory=dict)  # by the output of their products
    codes: set[str] = field(default_factory=set)  # outputs of QuantizeLinear; the baseline has their float values

    def value(self, name: str) -> _Value:
        return self.values.get(name, _Value(name))

    def constant(self, name: str) -> Array | None:
        return self.constants[name] if name in self.constants else self.graph.constant(name)

    def plain(self, name: str) -> str:
        """The name in the baseline of a value, with its factor applied."""
        found = self.value(name)
        if name in self.constants:
            return self.store(name, self.constants[name])
        if found.factor == 1.0:
            return found.name
        factor = self.store(f"{name}.factor", np.array(found.factor, np.float32))
        out = f"{name}.real"
        if all(out not in node.output for node in self.nodes):
            self.nodes.append(helper.make_node("Mul", [found.name, factor], [out], name=f"{name}/real"))
        return out

    def store(self, name: str, array: Array, origin: Array | None = None) -> str:
        """The name of an initializer; an earlier one of the same `origin` that is equal up to rounding is reused."""
        origin = array if origin is None else origin
        shared = self.stored.setdefault((origin.shape, sha256(origin.tobytes()).digest()), [])
        for other in shared:
            found = self.initializers[other]
            if found.dtype == array.dtype and np.allclose(found, array, rtol=1e-6, atol=0):
                return other
        shared.append(name)
        self.initializers[name] = array
        return name

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The only consumer of a value; None if it has several or is an output of the model."""
        users = self.graph.consumers.get(name, [])
        is_output = any(output.name == name for output in self.graph.model.graph.output)
        return users[0] if len(users) == 1 and not is_output else None


def float_baseline(path: Source) -> onnx.ModelProto:
    """The architecture of an exported file in float32: no quantizers, dequantized weights as initializers.

    Scales and biases after a convolution are folded into it. Raises ModelError for a file that cannot be read or has
    unknown operators, and UsageError if a quantizer or low-bit weights would remain.
    """
    model = with_float_states(load_onnx(path))
    baseline = _Baseline(view(model))
    baseline.layers = {layer.product.output[0]: layer for layer in layers(baseline.graph)}
    for node in baseline.graph.nodes:
        function = function_of(node)
        if function is None or not isinstance(function.in_float, Dequantized):
            continue
        baseline.constants[node.output[0]] = baseline.graph.low_bit(node).dequantize()
        baseline.done.add(node.output[0])
    for node in baseline.graph.nodes:
        if any(baseline.codes.intersection(n.input) for n in all_nodes([node])) and node.op_type not in (
            *_DATA_MOVEMENT,
            "DequantizeLinear",
        ):
            raise _not_float(node)
        if node.output[0] not in baseline.done:
            function = function_of(node)
            rule = _RULES.get((node.domain, node.op_type), _keep) if function is None else _dialect_call
            rule(baseline, node)
    graph = helper.make_graph([], f"{model.graph.name or 'model'}_float", model.graph.input, model.graph.output)
    for output in model.graph.output:
        if output.name in baseline.codes:
            raise _not_float(baseline.graph.producers[output.name])
        _finish_output(baseline, output.name)
    used = {name for node in all_nodes(baseline.nodes) for name in node.input} | {
        output.name for output in graph.output
    }
    graph.node.extend(n for n in baseline.nodes if n.op_type != "Constant" or n.output[0] in used)
    for tensor in model.graph.initializer:
        if tensor.name in used and tensor.name not in baseline.initializers:
            graph.initializer.append(tensor)
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in baseline.initializers.items() if n in used)
    made_values = {name for node in baseline.nodes for name in node.output} - baseline.codes
    graph.value_info.extend(i for i in model.graph.value_info if i.name in made_values)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    called = {node.op_type for node in baseline.nodes if node.domain == DOMAIN}
    made.functions.extend(function for function in model.functions if function.name in called)
    declare_states(made, states(model))
    _refuse_quantizers(made)
    return made


def _refuse_quantizers(made: onnx.ModelProto) -> None:
    low = {tensor.name for tensor in made.graph.initializer if tensor.data_type in _LOW_BIT}
    for node in every_node(made):
        if full_name(node) in QUANTIZERS or low.intersection(node.input):
            raise _not_float(node)
        if any(found.t.data_type in _LOW_BIT for found in node.attribute):
            raise _not_float(node)


def _not_float(node: onnx.NodeProto) -> UsageError:
    return UsageError(
        f"'{node.name}' ({node.op_type}) is a quantizer or has low-bit operands: this file cannot be converted to a "
        "float32 model; give the float model with --float-model FILE"
    )


def _finish_output(baseline: _Baseline, name: str) -> None:
    """Make an output of the model that is represented by another value or a factor, under its name."""
    if baseline.value(name) == _Value(name):
        return
    if baseline.value(name).name == name:
        for node in baseline.nodes:
            node.input[:] = [f"{name}.codes" if i == name else i for i in node.input]
            node.output[:] = [f"{name}.codes" if o == name else o for o in node.output]
        baseline.values[name] = _Value(f"{name}.codes", baseline.value(name).factor)
    baseline.nodes.append(helper.make_node("Identity", [baseline.plain(name)], [name], name=f"{name}/identity"))


# ---- rules ----


def _keep(baseline: _Baseline, node: onnx.NodeProto) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for i, name in enumerate(node.input):
        copy.input[i] = baseline.plain(name) if name else ""
    baseline.nodes.append(copy)


def _dialect_call(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Replace a call of a dialect function as its `in_float` defines."""
    function = function_of(node)
    if function is None or not isinstance(function.in_float, Rescale):
        _keep(baseline, node)
        return
    source, factor = baseline.value(node.input[0]), 1.0
    if function.in_float.factor is not None:
        name = function.proto.input[function.in_float.factor]
        constant = baseline.constant(node.input[function.in_float.factor])
        if constant is None or constant.size != 1:
            raise ModelError(f"'{node.name}' ({node.op_type}): its {name} is not a constant of one element")
        factor = float(constant.reshape(()))
    baseline.values[node.output[0]] = _Value(source.name, source.factor * factor)
    baseline.steps.update(node.output[index] for index in function.in_float.ones)


def _same(baseline: _Baseline, node: onnx.NodeProto) -> None:
    baseline.values[node.output[0]] = baseline.value(node.input[0])


def _quantize_linear(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Remove the quantizer; if its lowest code is the zero point, it includes a ReLU, which becomes a Clip."""
    source = baseline.plain(node.input[0])
    bounds = _range(baseline, node)
    if bounds is not None and not _nonnegative(baseline, node.input[0]):
        if opset_of(baseline.graph.model.opset_import) < 11:
            raise _not_float(node)  # Clip had attributes
        limits = [
            baseline.store(f"{node.output[0]}.{n}", np.array(b, np.float32))
            for n, b in zip(("low", "high"), bounds, strict=True)
        ]
        baseline.nodes.append(helper.make_node("Clip", [source, *limits], [f"{node.output[0]}.real"], name=node.name))
        source = f"{node.output[0]}.real"
    baseline.values[node.output[0]] = _Value(source)
    baseline.codes.add(node.output[0])


def _range(baseline: _Baseline, node: onnx.NodeProto) -> tuple[float, float] | None:
    """The range of values that a QuantizeLinear represents, if the lowest is 0; else None."""
    scale = baseline.constant(node.input[1])
    zero = baseline.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
        return None
    limits = np.iinfo(zero.dtype)
    codes = int(zero.reshape(())) - limits.min
    return None if codes else (0.0, float(scale.reshape(())) * (limits.max - limits.min))


def _nonnegative(baseline: _Baseline, name: str) -> bool:
    """Whether a value is certainly not negative; True for model inputs, which do not need an activation function."""
    known, node = baseline.constant(name), baseline.graph.producers.get(name)
    if known is not None or node is None:
        return known is None or bool((known >= 0).all())
    if node.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Clip"):
        return node.op_type != "Clip" or float(_lowest(baseline, node)) >= 0
    if node.op_type in ("Add", "Mul", "Concat"):
        return all(_nonnegative(baseline, i) for i in node.input)
    if node.op_type == "QuantizeLinear" and _range(baseline, node) is not None:
        return True
    through = (*_DATA_MOVEMENT, "QuantizeLinear", "DequantizeLinear", "AveragePool", "GlobalAveragePool", "ReduceMean")
    return node.op_type in through and _nonnegative(baseline, node.input[0])


def _lowest(baseline: _Baseline, clip: onnx.NodeProto) -> float:
    low = baseline.constant(clip.input[1]) if len(clip.input) > 1 and clip.input[1] else None
    return -np.inf if low is None else float(low.reshape(()))


def _dequantize_linear(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Weights become float32 constants; codes already are float values. Any other is kept, and refused later."""
    codes, scale = baseline.constant(node.input[0]), baseline.constant(node.input[1])
    zero = baseline.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.float32)
    if node.input[0] in baseline.codes:
        _same(baseline, node)
    elif codes is None or scale is None or zero is None or scale.dtype != np.float32:
        _keep(baseline, node)
    else:
        zero, scale = (_along_axis(node, np.asarray(a, np.float32), codes.shape) for a in (zero, scale))
        baseline.constants[node.output[0]] = (codes.astype(np.float32) - zero) * scale


def _along_axis(node: onnx.NodeProto, operand: Array, shape: tuple[int, ...]) -> Array:
    """A scale or zero point (per tensor, per axis, or blocked) reshaped to broadcast to `shape`."""
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if operand.size == 1:
        return operand.reshape(())
    if block:
        return np.repeat(operand, block, axis).take(range(shape[axis]), axis)
    return operand.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _data_movement(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Propagate the factor of the input; transpose a constant."""
    known = baseline.constants.get(node.input[0])
    if known is not None and node.op_type == "Transpose":
        baseline.constants[node.output[0]] = np.transpose(known, attribute(node, "perm"))
        return
    source = baseline.value(node.input[0])
    if node.input[0] in baseline.codes:
        baseline.codes.add(node.output[0])
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[0] = source.name if known is None else baseline.store(node.input[0], known)
    baseline.nodes.append(copy)
    baseline.values[node.output[0]] = _Value(node.output[0], source.factor)


def _pad(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Fold explicit padding into a convolution: that with zeros, and that of a binary convolution."""
    user, sides, fills = baseline.only_user(node.output[0]), _spatial_pads(baseline, node), _fills(baseline, node)
    function = function_of(baseline.graph.producers.get(node.input[0], onnx.NodeProto()))
    signs = function is not None and function.in_float == Rescale()
    padded = user is None or any(attribute(user, "pads", ())) or attribute(user, "auto_pad", b"").startswith(b"SAME")
    if user is None or user.op_type != "Conv" or padded or not sides or (fills and not signs):
        (_keep if fills else _data_movement)(baseline, node)  # a fill is in the unit of the file's values
        return
    changed = onnx.NodeProto()
    changed.CopyFrom(user)
    del changed.attribute[:]
    kept = (a for a in user.attribute if a.name not in ("pads", "auto_pad"))
    changed.attribute.extend([*kept, helper.make_attribute("pads", sides)])
    baseline.done.add(user.output[0])
    changed.input[0] = node.input[0]
    _product(baseline, changed)


def _fills(baseline: _Baseline, node: onnx.NodeProto) -> bool:
    """Whether a Pad may add other constants than zeros."""
    fill = baseline.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    return bool(attribute(node, "mode", b"constant") == b"constant" and (fill is None or fill.any()))


def _spatial_pads(baseline: _Baseline, node: onnx.NodeProto) -> list[int]:
    """The `pads` of a convolution that pads like this Pad; empty if none does."""
    pads = baseline.constant(node.input[1]) if len(node.input) == 3 else None
    if pads is None or attribute(node, "mode", b"constant") != b"constant" or (pads < 0).any():
        return []
    return [] if pads.reshape(2, -1)[:, :2].any() else [int(p) for p in pads.reshape(2, -1)[:, 2:].reshape(-1)]


def _product(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """Conv, MatMul or Gemm: fold factor, scales and bias into a constant weight."""
    weight = baseline.constant(node.input[1])
    if weight is None or weight.dtype != np.float32:
        left, right = baseline.value(node.input[0]), baseline.value(node.input[1])
        if node.op_type != "MatMul" or left.factor * right.factor == 1.0:
            _keep(baseline, node)
            return
        baseline.nodes.append(helper.make_node("MatMul", [left.name, right.name], node.output, name=node.name))
        baseline.values[node.output[0]] = _Value(node.output[0], left.factor * right.factor)
        return
    source = baseline.value(node.input[0])
    given = node.input[2] if len(node.input) > 2 else ""
    bias, channels = baseline.constant(given) if given else None, OutputChannels.of(baseline.graph, node, weight)
    shift = None if bias is None else channels.vector(bias)
    if weight.ndim < 2 or (given and shift is None):
        _keep(baseline, node)
        return
    end, scale, added = _affine(baseline, node, channels)
    folded = weight.astype(np.float64) * source.factor
    folded = folded * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if channels.first and scale.size > 1 else scale)
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend([source.name, baseline.store(f"{node.output[0]}.weight", folded.astype(np.float32), weight)])
    copy.output[0] = end
    if shift is not None or added is not None:
        total = np.zeros(channels.count) + (0 if added is None else added)
        if shift is not None:
            total += attribute(node, "beta", 1.0) * shift * scale
        kept = [one for one in copy.attribute if one.name != "beta"]  # it is in the sum, now
        del copy.attribute[:]
        copy.attribute.extend(kept)
        stored = baseline.store(f"{node.output[0]}.bias", total.astype(np.float32))
        if node.op_type == "MatMul":
            copy.output[0] = f"{end}.product"
            baseline.nodes.extend(
                [copy, helper.make_node("Add", [copy.output[0], stored], [end], name=f"{node.name}/bias")]
            )
            return
        copy.input.append(stored)
    baseline.nodes.append(copy)


def _affine(baseline: _Baseline, node: onnx.NodeProto, channels: OutputChannels) -> tuple[str, Array, Array | None]:
    """Fold the epilogue (Round, Mul by constants or a per-token step, Add of a constant): last value, scale, bias."""
    value, scale = node.output[0], np.ones((), np.float64)
    for item in baseline.layers[value].epilogue:
        operand = None if item.operand is None else baseline.constant(item.operand)
        unit = item.operand in baseline.steps if item.node.op_type == "Mul" else _is_of_integers(baseline, item.node)
        factor = None if operand is None or unit else channels.vector(operand)
        if baseline.only_user(item.value) is None or (factor is None and not unit):
            break
        value = item.node.output[0]
        baseline.done.add(value)
        if factor is None:
            continue
        if item.node.op_type == "Add":
            return value, scale, factor
        scale = scale * factor
    return value, scale, None


def _is_of_integers(baseline: _Baseline, node: onnx.NodeProto) -> bool:
    """Whether a node is the Round of a sum that the file computes in integers, on which it is the identity."""
    product = baseline.graph.producers.get(node.input[0])
    return node.op_type == "Round" and product is not None and is_integer_product(baseline.graph, product)


def _round(baseline: _Baseline, node: onnx.NodeProto) -> None:
    if _is_of_integers(baseline, node):
        baseline.values[node.output[0]] = baseline.value(node.input[0])
    else:
        _keep(baseline, node)


def _sum(baseline: _Baseline, node: onnx.NodeProto) -> None:
    """A ReduceSum followed by a multiplication with 1 / window, as in quantized averages, becomes ReduceMean."""
    source = baseline.value(node.input[0])
    user = baseline.only_user(node.output[0])
    operand = baseline.constant(user.input[1]) if user is not None and user.op_type == "Mul" else None
    before, after = baseline.graph.shape(node.input[0]), baseline.graph.shape(node.output[0])
    if user is not None and operand is not None and operand.size == 1 and before and after is not None:
        window = prod(before) / max(1, prod(after))
        if abs(float(operand.reshape(())) * source.factor * window - 1) < 1e-4:
            baseline.done.add(user.output[0])
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.op_type, copy.input[0], copy.output[0] = "ReduceMean", source.name, user.output[0]
            baseline.nodes.append(copy)
            return
    _data_movement(baseline, node)


_DATA_MOVEMENT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "MaxPool")

_LOW_BIT = {value for name, value in onnx.TensorProto.DataType.items() if re.match("U?INT[248]$|FLOAT[468]", name)}

_RULES: dict[tuple[str, str], Callable[[_Baseline, onnx.NodeProto], None]] = {
    ("", "QuantizeLinear"): _quantize_linear,
    ("", "DequantizeLinear"): _dequantize_linear,
    ("", "Conv"): _product,
    ("", "MatMul"): _product,
    ("", "Gemm"): _product,
    ("", "Round"): _round,
    ("", "Pad"): _pad,
    ("", "ReduceSum"): _sum,
    **{("", name): _data_movement for name in _DATA_MOVEMENT},
}


# ---- int8 ----


def int8_baseline(float_model: onnx.ModelProto, calibration: Iterable[Array | Mapping[str, Array]]) -> onnx.ModelProto:
    """A float model quantized to int8 by onnxruntime: static QDQ per channel for CNNs, dynamic for transformers.

    `calibration`: batches of inputs (arrays, or dicts by input name), used for CNNs only. Weights have seven bits
    (`reduce_range`) if onnxruntime's products of eight bits would saturate on this CPU. Raises ModelError for operators
    that subbyte does not know.
    """
    float_model = load_onnx(float_model)
    tools = onnxruntime("quantization")
    first = inputs_of(float_model)[0]
    batches = [dict(b) if isinstance(b, Mapping) else {first.name: np.asarray(b, first.dtype)} for b in calibration]

    class Batches(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.remaining = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.remaining, None)

    kinds = {node.op_type for node in float_model.graph.node}
    transformer = bool(kinds & {"Softmax", "LayerNormalization"}) or "Conv" not in kinds
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, out = (str(Path(folder) / f"{stem}.onnx") for stem in ("float", "prepared", "int8"))
        onnx.save(float_model, source)
        onnxruntime("quantization.shape_inference").quant_pre_process(source, prepared, skip_symbolic_shape=True)
        if transformer:
            # the patch embedding would become ConvInteger, which is slower than the float convolution
            tools.quantize_dynamic(
                prepared,
                out,
                per_channel=True,
                reduce_range=onnxruntime_saturates(),
                weight_type=tools.QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
        else:
            if not batches:
                raise ModelError("an int8 CNN needs calibration inputs; give some batches of the training data")
            tools.quantize_static(
                prepared,
                out,
                Batches(),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=onnxruntime_saturates(),
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
            )
        return onnx.load(out)
