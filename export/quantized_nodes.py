"""The nodes of a quantized layer, as the exporter writes them: quantizer, packed weights, product, scale, bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn

from subbyte.dialect.names import DOMAIN
from subbyte.errors import QuantizationError
from subbyte.export.float_products import FloatProduct
from subbyte.formats import PerGroup
from subbyte.models.quant import QuantizedProduct
from subbyte.models.quant.quantizer import ActivationQuantizer

Array = npt.NDArray[Any]


@dataclass
class Emitted:
    """Nodes and initializers that are added to a file; quantizers of one value with one step are one node."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    quantizers: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)

    def constant(self, name: str, value: Array) -> str:
        """The name of a new initializer."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def call(self, function: str, inputs: list[str], outputs: list[str], name: str) -> None:
        """Call a function of the dialect."""
        self.nodes.append(helper.make_node(function, inputs, outputs, name, domain=DOMAIN))

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """The output of a new standard node."""
        self.nodes.append(helper.make_node(operator, inputs, [output], f"{output}/{operator}", **attributes))
        return output


def emit(product: FloatProduct, layer: QuantizedProduct, emitted: Emitted) -> None:
    """Add the nodes that compute `layer` in place of the product; the last output has the product's name."""
    layer.ensure_constants()
    name, out = product.name, product.node.output[0]
    codes, step = _quantized(product, layer.activation_quantizer, emitted)
    weight = _decoded(name, layer, emitted)
    value = f"{name}.product"
    if isinstance(layer, nn.Linear):
        transposed = emitted.node("Transpose", [weight], f"{name}.transposed", perm=[1, 0])
        emitted.node("MatMul", [codes, transposed], value)
    else:
        convolution = onnx.NodeProto()
        convolution.CopyFrom(product.node)
        del convolution.input[:]
        convolution.input.extend([codes, weight])
        convolution.output[0] = value
        emitted.nodes.append(convolution)
    if layer.sums_integers:
        value = emitted.node("Round", [value], f"{name}.sum")
    if step is not None:
        value = emitted.node("Mul", [value, step], f"{name}.by_token")
    for operator, constant in (("Mul", layer.output_scale), ("Add", layer.output_bias)):
        if constant is not None:
            stored = emitted.constant(f"{name}.{'scale' if operator == 'Mul' else 'bias'}_out", _array(constant))
            value = emitted.node(operator, [value, stored], f"{name}.{operator.lower()}")
    emitted.nodes[-1].output[0] = out


def _quantized(
    product: FloatProduct, quantizer: ActivationQuantizer | None, emitted: Emitted
) -> tuple[str, str | None]:
    """The codes of the product's input (the input where it stays in float), and the step if it is found at run time."""
    x, name = product.node.input[0], product.name
    if quantizer is None:
        return x, None
    quantizer.ensure_constants()
    if quantizer.granularity.name == "token":
        if (x, "token") not in emitted.quantizers:
            emitted.quantizers[x, "token"] = (f"{name}.codes", f"{name}.step")
            emitted.call("QuantizePerToken", [x], [f"{name}.codes", f"{name}.step"], f"{name}/QuantizePerToken")
        codes, step = emitted.quantizers[x, "token"]
        return codes, step
    bounds = [getattr(quantizer, field_, None) for field_ in ("inverse_step", "low", "high")]
    if not all(isinstance(bound, Tensor) for bound in bounds) or quantizer.pad_value:
        raise QuantizationError(
            f"'{name}': inputs of format {quantizer.format.name} have no step and no bounds; a float ONNX file takes a "
            "scheme with integer activations, such as int8"
        )
    numbers = tuple(_array(bound) for bound in bounds)
    key = (x, *(float(number) for number in numbers))
    if key not in emitted.quantizers:
        emitted.quantizers[key] = (f"{name}.codes",)
        roles = zip(("inverse_step", "low", "high"), numbers, strict=True)
        inputs = [emitted.constant(f"{name}.{role}", number) for role, number in roles]
        emitted.call("Quantize", [x, *inputs], [f"{name}.codes"], f"{name}/Quantize")
    return emitted.quantizers[key][0], None


def _decoded(name: str, layer: QuantizedProduct, emitted: Emitted) -> str:
    """The levels of the weight, or its values where scales are by group or it stays in float."""
    quantizer = layer.weight_quantizer
    if quantizer is None:
        return emitted.constant(f"{name}.weight", _array(layer.weight))
    low_bit = layer.low_bit_weight()
    shape = np.array(layer.weight_levels.shape, np.int64)
    inputs = [emitted.constant(f"{name}.packed", low_bit.packed), emitted.constant(f"{name}.shape", shape)]
    function = quantizer.format.decoder
    if isinstance(quantizer.granularity, PerGroup):
        function = quantizer.format.dequantizer
        inputs.append(emitted.constant(f"{name}.scale", _array(layer.weight_scale)))
        inputs.append(emitted.constant(f"{name}.group_size", np.array(quantizer.granularity.size, np.int64)))
    emitted.call(function, inputs, [f"{name}.weight"], f"{name}/{function}")
    return f"{name}.weight"


def _array(value: Tensor | None) -> Array:
    assert value is not None
    array: Array = value.detach().cpu().numpy()
    return array
