"""Quantization-aware training for any nn.Module: schemes, quantizers, and `quantize(model, scheme)`."""

from subbyte.models.quant import primitives, schemes
from subbyte.models.quant.binary import Sign, Threshold
from subbyte.models.quant.eval_constants import exporting, fake_quantized, refresh
from subbyte.models.quant.learned_step import LearnedStep
from subbyte.models.quant.parameter_groups import HasParameterGroups, ParameterGroup, parameter_groups
from subbyte.models.quant.per_token import DynamicPerToken
from subbyte.models.quant.power_of_two import DeepShiftQ
from subbyte.models.quant.product import QuantizedProduct
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer
from subbyte.models.quant.replace_layers import ReportRow, quantize, quantized_layers, set_progress
from subbyte.models.quant.scheme import FirstAndLast, Scheme, all_schemes, get_scheme, register_scheme
from subbyte.models.quant.ternary import AbsMean

__all__ = [
    "AbsMean",
    "ActivationQuantizer",
    "DeepShiftQ",
    "DynamicPerToken",
    "FirstAndLast",
    "HasParameterGroups",
    "LearnedStep",
    "ParameterGroup",
    "QuantizedProduct",
    "ReportRow",
    "Scheme",
    "Sign",
    "Threshold",
    "WeightQuantizer",
    "all_schemes",
    "exporting",
    "fake_quantized",
    "get_scheme",
    "parameter_groups",
    "primitives",
    "quantize",
    "quantized_layers",
    "refresh",
    "register_scheme",
    "schemes",
    "set_progress",
]
