"""Quantization-aware training for any nn.Module: schemes, quantizers, and recipes, and `quantize(model, recipe)`."""

from importlib import import_module
from pkgutil import iter_modules

from subbyte.models.quant import estimators, primitives, schemes
from subbyte.models.quant.estimators.absmean import AbsMean
from subbyte.models.quant.estimators.deepshift import DeepShiftQ
from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.estimators.per_token import DynamicPerToken
from subbyte.models.quant.estimators.reste import Sign, Threshold
from subbyte.models.quant.eval_constants import exporting, fake_quantized, refresh
from subbyte.models.quant.parameter_groups import HasParameterGroups, ParameterGroup, parameter_groups
from subbyte.models.quant.product import QuantizedProduct
from subbyte.models.quant.proposal import propose
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer
from subbyte.models.quant.recipe import Recipe, Rule, as_recipe
from subbyte.models.quant.recipe_data import read_recipe, recipe_data, recipe_from_data, recipe_text
from subbyte.models.quant.register import register_activations, register_weights
from subbyte.models.quant.replace_layers import ReportRow, quantize, quantized_layers, set_progress
from subbyte.models.quant.scheme import Scheme, all_schemes, combine, get_scheme, register_scheme
from subbyte.models.quant.sensitivities import Sensitivities, sensitivity

for _module in iter_modules(estimators.__path__, f"{estimators.__name__}."):
    import_module(_module.name)

__all__ = [
    "AbsMean",
    "ActivationQuantizer",
    "DeepShiftQ",
    "DynamicPerToken",
    "HasParameterGroups",
    "LearnedStep",
    "ParameterGroup",
    "QuantizedProduct",
    "Recipe",
    "ReportRow",
    "Rule",
    "Scheme",
    "Sensitivities",
    "Sign",
    "Threshold",
    "WeightQuantizer",
    "all_schemes",
    "as_recipe",
    "combine",
    "estimators",
    "exporting",
    "fake_quantized",
    "get_scheme",
    "parameter_groups",
    "primitives",
    "propose",
    "quantize",
    "quantized_layers",
    "read_recipe",
    "recipe_data",
    "recipe_from_data",
    "recipe_text",
    "refresh",
    "register_activations",
    "register_scheme",
    "register_weights",
    "schemes",
    "sensitivity",
    "set_progress",
]
