"""`quantize(model, recipe)`: turn the layers of any nn.Module into quantized ones, in place.

What each kind of module becomes is the table PRODUCTS, POOLS, NORMS, FLOAT_ONLY below; what cannot be quantized stays
in float and is listed with the reason in `model.quantization_report`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from subbyte.errors import FormatError, QuantizationError
from subbyte.models.quant.batch_norm import QuantizedBatchNorm, link
from subbyte.models.quant.estimators.learned_step import LearnedStep
from subbyte.models.quant.first_batch import FirstBatchQuantizer, Forward
from subbyte.models.quant.pooling import QuantizedAveragePool, QuantizedGlobalPool, QuantizedWindowPool
from subbyte.models.quant.product import QuantizedConv, QuantizedLinear, QuantizedProduct
from subbyte.models.quant.quantizer import ActivationQuantizer, WeightQuantizer
from subbyte.models.quant.recipe import Layer, Recipe, Rule, as_recipe
from subbyte.models.quant.scheme import Scheme
from subbyte.models.quant.trace import Trace, trace

POOL_BITS = 8


@dataclass(frozen=True)
class ReportRow:
    """What became of one layer: formats by name, or "float"; `note` says why it is not what the scheme says.

    `rule` is the index of the recipe's rule that decided; None where none did.
    """

    layer: str
    kind: str
    weights: str
    activations: str
    note: str = ""
    rule: int | None = None


# ---- what a module can become: (class, mixin). The first row that fits wins. ----

PRODUCTS: tuple[tuple[type[nn.Module], type[QuantizedProduct]], ...] = (
    (nn.Linear, QuantizedLinear),
    (nn.Conv1d, QuantizedConv),
    (nn.Conv2d, QuantizedConv),
)
POOLS: tuple[tuple[type[nn.Module], type[QuantizedAveragePool]], ...] = (
    (nn.AdaptiveAvgPool1d, QuantizedGlobalPool),
    (nn.AdaptiveAvgPool2d, QuantizedGlobalPool),
    (nn.AvgPool1d, QuantizedWindowPool),
    (nn.AvgPool2d, QuantizedWindowPool),
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

# Weights of these are products too, but not ones that we can quantize.
FLOAT_ONLY: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.conv._ConvTransposeNd, "transposed convolutions have no quantized form"),
    (nn.Conv3d, "three-dimensional convolutions have no quantized form"),
    (nn.Embedding, "a table look-up is not a product"),
    (nn.EmbeddingBag, "a table look-up is not a product"),
    (nn.Bilinear, "bilinear layers have no quantized form"),
    (nn.RNNBase, "recurrent layers have no quantized form"),
    (nn.RNNCellBase, "recurrent layers have no quantized form"),
    (nn.MultiheadAttention, "torch's attention reads its weights itself; write it with four nn.Linear to quantize it"),
)


def quantize(model: nn.Module, recipe: str | Scheme | Recipe | Sequence[Rule], example: Any = None) -> nn.Module:
    """Prepare `model` in place for quantization-aware training with `recipe`, and return it.

    A recipe may be the name of a scheme, a Scheme, or rules. Linear, Conv1d and Conv2d layers get quantized weights and
    inputs, or one of them; average pools over one or two axes become exact where inputs are quantized; batch norms are
    computed with constants in eval mode. With `example` (a tensor, a tuple of arguments or a dict of keyword arguments)
    the model is run once in eval mode: first and last layer are then those that execute first and last, layers that
    never execute stay in float, and a batch norm that alone consumes a layer's output becomes part of that layer's
    scale and bias. `model.quantization_report` lists what became of every layer. Activation quantizers start from the
    first batch that is not zero, a layer that is called several times in a forward from all its calls.

    Convert batch norms for several processes (nn.SyncBatchNorm) before this call; they are then not linked.

    Raises QuantizationError for a layer or model that cannot be quantized and for a recipe that does not fit it,
    UnknownNameError for an unknown scheme.
    """
    chosen = as_recipe(recipe)
    modules = dict(model.named_modules())
    if any(isinstance(m, (QuantizedProduct, QuantizedAveragePool)) for m in modules.values()):
        raise QuantizationError("this model is quantized already; quantize a fresh copy of the float model")

    if chosen.is_float:
        names = _find(modules)
        layers = [*_never(modules), *(Layer(name, modules[name]) for name in names)]
        report = [_row(layer, chosen, chosen.decide(layers).get(layer.name), None) for layer in layers]
    else:
        report = _quantized(model, modules, chosen, example)
    _tell_of_forwards(model)  # a Lookup has a quantizer of its own
    model.__dict__["quantization_report"] = report
    return model


def _quantized(model: nn.Module, modules: dict[str, nn.Module], recipe: Recipe, example: Any) -> list[ReportRow]:
    """Change the modules as the recipe says. All that can be refused is refused before anything is changed."""
    pools = [name for name, m in modules.items() if isinstance(m, tuple(kind for kind, _ in POOLS))]
    norms = _norms(modules)
    survey = _survey(model, modules, example, pools)
    decided = recipe.decide(survey.layers)
    plans: dict[str, _Plan] = {}
    for layer in survey.layers:
        scheme = recipe.rules[decided[layer.name]].scheme if layer.reason is None else Scheme()
        with recipe.blamed(decided.get(layer.name)):
            if not scheme.is_float and layer.name in survey.errors:
                raise survey.errors[layer.name]
            plan = _plan(layer, scheme)
        if plan is not None:
            plans[layer.name] = plan
    report = [_row(layer, recipe, decided.get(layer.name), plans.get(layer.name)) for layer in survey.layers]
    for name, plan in plans.items():
        _install(modules[name], plan)
    if any(plan.activations is not None for plan in plans.values()):
        report += list(_quantize_pools(modules, pools, survey.seen))
    report += list(_other_names(model, report))
    _quantize_norms(modules, norms, survey.seen)
    _forbid_fast_paths(modules)
    return report


def quantized_layers(model: nn.Module) -> dict[str, QuantizedProduct]:
    """The quantized Linear and Conv layers of a model by name, in module order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedProduct)}


def survey(model: nn.Module, example: Any) -> list[Layer]:
    """The layers of a float model as rules see them; `reason` also says why quantizing one would be refused."""
    found = _survey(model, dict(model.named_modules()), example, [])
    errors = {name: str(error) for name, error in found.errors.items()}
    return [replace(layer, reason=layer.reason or errors.get(layer.name)) for layer in found.layers]


@contextmanager
def quantized_alone(model: nn.Module, layer: Layer, scheme: Scheme) -> Iterator[nn.Module]:
    """Within this context a quantized copy takes the place of `layer` in `model`; all else stays in float.

    Its quantizers start from the next forward of the model. Raises QuantizationError where it cannot take the scheme,
    or is the model itself.
    """
    places = [(m, key) for m in model.modules() for key, child in m._modules.items() if child is layer.module]
    if not places:
        raise QuantizationError(f"'{layer.name}' is not a part of a model; put it into one, such as nn.Sequential")
    copied = copy.deepcopy(layer.module)
    plan, forward = _plan(replace(layer, module=copied), scheme), Forward()
    if plan is not None:
        _install(copied, plan)
    for module in copied.modules():
        if isinstance(module, FirstBatchQuantizer):
            module.start_in(forward)
    _forbid_fast_paths(dict(model.named_modules()))
    hooks = [
        model.register_forward_pre_hook(forward.begin),
        model.register_forward_hook(forward.end, always_call=True),
    ]
    try:
        for parent, key in places:
            parent._modules[key] = copied
        yield copied
    finally:
        for parent, key in places:
            parent._modules[key] = layer.module
        for hook in hooks:
            hook.remove()


def set_progress(model: nn.Module, fraction: float) -> None:
    """Tell every quantizer how far training is, 0 at the start, 1 at the end; ReSTE's gradient changes with it."""
    if not 0 <= fraction <= 1:
        raise QuantizationError(f"progress is a fraction from 0 to 1, got {fraction}")
    for module in model.modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            module.set_progress(fraction)


# ---- which layers ----


@dataclass(frozen=True)
class _Survey:
    """The layers of a model as rules see them, what a run of the example showed, and who would be quantized wrongly."""

    layers: list[Layer]
    seen: Trace | None
    errors: dict[str, QuantizationError]


def _survey(model: nn.Module, modules: dict[str, nn.Module], example: Any, pools: list[str]) -> _Survey:
    reasons: dict[str, str | None] = {}
    errors: dict[str, QuantizationError] = {}
    found = _find(modules)
    for name in found:
        if isinstance(modules[name].weight, nn.parameter.UninitializedParameter):
            raise QuantizationError(f"'{name}' is lazy and has no weight yet; run the model once before quantize")
    for name in found:
        try:
            reasons[name] = _why_not(name, modules)
        except QuantizationError as error:
            reasons[name], errors[name] = None, error
    able = [name for name, reason in reasons.items() if reason is None]
    seen = None if example is None else trace(model, example, [*able, *pools], _norms(modules))
    if seen is not None:
        for name in set(able) - set(seen.order):
            reasons[name] = "it is not executed by the example"
        able = [name for name in seen.order if name in set(able)]
    unable = [Layer(name, modules[name], reason) for name, reason in reasons.items() if reason is not None]
    placed = [Layer(n, modules[n], first=i == 0, last=i == len(able) - 1) for i, n in enumerate(able)]
    return _Survey([*_never(modules), *unable, *placed], seen, errors)


def product_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold a product or a table, whether they can be quantized or not, by name, in module order."""
    kinds = tuple(kind for kind, _ in (*PRODUCTS, *FLOAT_ONLY))
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _find(modules: dict[str, nn.Module]) -> list[str]:
    kinds = tuple(kind for kind, _ in PRODUCTS)
    return [name for name, m in modules.items() if isinstance(m, kinds)]


def _norms(modules: dict[str, nn.Module]) -> list[str]:
    return [n for n, m in modules.items() if isinstance(m, NORMS) and m.running_mean is not None]


def _never(modules: dict[str, nn.Module]) -> Iterator[Layer]:
    """Layers of a kind that has no quantized form."""
    for name, module in modules.items():
        for kind, reason in FLOAT_ONLY:
            if isinstance(module, kind):
                yield Layer(name, module, reason)


def _why_not(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Why this layer stays in float, or None; raises QuantizationError for what would be quantized wrongly."""
    module = cast(Any, modules[name])
    kind = next(kind for kind, _ in PRODUCTS if isinstance(module, kind))
    if type(module).forward is not kind.forward or getattr(type(module), "_conv_forward", None) is not getattr(
        kind, "_conv_forward", None
    ):
        return f"its class {type(module).__name__} has a forward of its own"
    if isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention):
        return "torch's attention reads its weights itself"
    if parametrize.is_parametrized(module, "weight"):
        return "its weight is parametrized already; remove the parametrization to quantize it"
    if module.weight.dtype != torch.float32:
        raise QuantizationError(f"'{name}' has {module.weight.dtype} weights; quantize expects float32")
    if not bool(torch.isfinite(module.weight).all()):
        raise QuantizationError(f"'{name}' has NaN or infinite weights; they cannot be quantized")
    sharers = [n for n, m in modules.items() if n != name and any(p is module.weight for p in m._parameters.values())]
    if sharers:
        return f"its weight is shared with '{sharers[0]}'"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise QuantizationError(
            f"'{name}' pads with '{module.padding_mode}'; only padding_mode='zeros' can be quantized. "
            "Put a padding module (nn.ReflectionPad2d, ...) before it"
        )
    return None


def _other_names(model: nn.Module, rows: list[ReportRow]) -> Iterator[ReportRow]:
    """A row for every further name of a layer that the model holds under several."""
    first = dict(model.named_modules())
    known = {first[row.layer]: row for row in rows}
    for name, module in model.named_modules(remove_duplicate=False):
        if module in known and name not in first:
            yield replace(known[module], layer=name, note=f"the same layer as '{known[module].layer}'")


# ---- how ----


@dataclass(frozen=True)
class _Plan:
    """The quantizers of a layer, made before any layer is changed; None for what stays in float."""

    weights: WeightQuantizer | None
    activations: ActivationQuantizer | None
    formats: tuple[str, str]


def _plan(layer: Layer, scheme: Scheme) -> _Plan | None:
    """What the scheme makes of a layer, None where it stays in float; raises QuantizationError."""
    if scheme.is_float:
        return None
    weight, chosen = cast(Tensor, layer.module.weight), scheme.activations
    if chosen is not None:  # the owner of a layer may know the range of its input, as of a state
        chosen = layer.module.__dict__.get("input_quantizer", chosen)
    try:
        weights = None if scheme.weights is None else scheme.weights.weight_quantizer(weight).to(weight.device)
        activations = None if chosen is None else chosen.activation_quantizer(layer.module).to(weight.device)
    except (QuantizationError, FormatError) as error:
        raise QuantizationError(f"'{layer.name}' cannot take the scheme '{scheme.label}': {error}") from error
    formats = ["float" if half is None else half.format_name for half in (scheme.weights, chosen)]
    return _Plan(weights, activations, (formats[0], formats[1]))


def _install(module: nn.Module, plan: _Plan) -> None:
    mixin = next(mixin for kind, mixin in PRODUCTS if isinstance(module, kind))
    layer = cast(QuantizedProduct, _become(module, mixin))
    layer.install(plan.weights, plan.activations)
    layer.train(layer.training)


def _row(layer: Layer, recipe: Recipe, number: int | None, plan: _Plan | None) -> ReportRow:
    kind = type(layer.module).__name__
    if layer.reason is not None or number is None:
        return ReportRow(layer.name, kind, "float", "float", layer.reason or "", number)
    rule = recipe.rules[number]
    place = "first layer" if layer.first else "last layer"
    said = f"{place}, {rule.scheme.label}" if rule.match is not None else f"by {recipe.called(number)}"
    note = "" if rule.is_rest else said
    if plan is None:
        return ReportRow(layer.name, kind, "float", "float", note or "float scheme", number)
    return ReportRow(layer.name, kind, *plan.formats, note, number)


def _quantize_pools(modules: dict[str, nn.Module], pools: list[str], seen: Trace | None) -> Iterator[ReportRow]:
    for name in pools:
        module = modules[name]
        kind, mixin = next((kind, mixin) for kind, mixin in POOLS if isinstance(module, kind))
        reason = _why_not_pool(module, kind)
        if seen is not None and name not in seen.order:
            reason = "it is not executed by the example"
        if reason is None:
            config = LearnedStep(POOL_BITS)
            cast(QuantizedAveragePool, _become(module, mixin)).install(config.activation_quantizer(module))
            module.train(module.training)
        note = "exact integer sum" if reason is None else reason
        yield ReportRow(name, kind.__name__, "-", "float" if reason else f"int{POOL_BITS}", note)


def _why_not_pool(module: Any, kind: type[nn.Module]) -> str | None:
    if type(module).forward is not kind.forward:
        return f"its class {type(module).__name__} has a forward of its own"
    if issubclass(kind, nn.modules.pooling._AdaptiveAvgPoolNd):
        return None if module.output_size in (1, (1,), [1], (1, 1), [1, 1]) else "only output size 1 is exact"
    divisor = getattr(module, "divisor_override", None)  # nn.AvgPool1d has none
    if module.padding not in (0, (0,), (0, 0)) or module.ceil_mode or divisor is not None:
        return "only pooling without padding, ceil_mode and divisor_override is exact"
    return None


def _quantize_norms(modules: dict[str, nn.Module], norms: list[str], seen: Trace | None) -> None:
    for name in norms:
        if type(modules[name]).forward is nn.modules.batchnorm._BatchNorm.forward:
            _become(modules[name], QuantizedBatchNorm)
    for layer_name, norm_name in ({} if seen is None else seen.norms).items():
        layer, norm = modules[layer_name], modules[norm_name]
        if isinstance(layer, QuantizedProduct) and isinstance(norm, QuantizedBatchNorm):
            link(layer, norm)


def _forbid_fast_paths(modules: dict[str, nn.Module]) -> None:
    """nn.TransformerEncoderLayer has a fused eval path that reads its layers' weights itself; turn it off."""
    for module in modules.values():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def _tell_of_forwards(model: nn.Module) -> None:
    """Quantizers start from all calls within one forward of the model; hooks say when that begins and ends."""
    forward = Forward()
    for module in model.modules():
        if isinstance(module, FirstBatchQuantizer):
            module.start_in(forward)
    model.register_forward_pre_hook(forward.begin)
    model.register_forward_hook(forward.end, always_call=True)


_classes: dict[tuple[type, type], type] = {}


def _become(module: nn.Module, mixin: type[nn.Module]) -> nn.Module:
    """Make `module` an instance of a subclass of its own class that has the mixin first."""
    base = type(module)
    if (mixin, base) not in _classes:
        _classes[mixin, base] = type(f"Quantized{base.__name__}", (mixin, base), {"__module__": base.__module__})
    module.__class__ = _classes[mixin, base]
    return module
