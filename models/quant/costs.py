"""What a recipe makes of each layer of a model, and what that costs: bits, multiply-accumulates, bytes.

MACs are those of one input. Bytes of a quantized weight are its packed codes and scales. What is not known is None, and
no sum hides it: `Costs.unknown` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from subbyte import formats
from subbyte.models.quant.macs import Macs, count_macs
from subbyte.models.quant.product import QuantizedProduct
from subbyte.models.quant.recipe import Recipe, Rule, as_recipe
from subbyte.models.quant.replace_layers import ReportRow, product_layers, quantize
from subbyte.models.quant.scheme import Scheme

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer. `why` says why it is in float where it is, or what else keeps it from what its rule says."""

    name: str
    kind: str  # the class of its module
    shapes: tuple[tuple[int, ...], ...]  # of its weights
    rule: str  # "1 first-and-last"; "" where none is for it
    weights: str  # format, or "float"
    activations: str
    weight_bits: int  # of a code
    activation_bits: int
    macs: int | None  # None: it holds products that are not counted
    weight_bytes: int  # packed codes and scales
    float_bytes: int  # the same weights in float
    why: str


@dataclass(frozen=True)
class Costs:
    """All layers, in module order, and sums."""

    layers: tuple[LayerCost, ...]
    macs: dict[str, int]  # by bits: "4x8" is 4-bit weights x 8-bit activations; "32x32" float, products of no layer too
    other_macs: int  # of products of two activations, as in attention; part of `macs`
    weight_bytes: int
    other_bytes: int  # of all other parameters: biases, norms, embeddings of positions
    float_bytes: int  # the whole model in float
    average_bits: float | None  # of the weights that are quantized, by number of weights; None: none is
    unknown: tuple[str, ...]  # what the MACs lack, and why

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters."""
        return self.weight_bytes + self.other_bytes


def costs(model: nn.Module, recipe: str | Scheme | Recipe | Sequence[Rule], example: Any) -> Costs:
    """Quantize the float `model` in place, as `quantize` does, and say what each layer costs for one input.

    `example` is an input with a batch of 1. Raises what `quantize` raises.
    """
    chosen = as_recipe(recipe)
    layers = product_layers(model)
    macs = count_macs(model, example, list(layers))
    weights = _weights(layers)
    everything = sum(_nbytes(parameter) for parameter in model.parameters())
    floats = {name: sum(map(_nbytes, found)) for name, found in weights.items()}
    shapes = {name: tuple(tuple(w.shape) for w in _own(module)) for name, module in layers.items()}
    quantize(model, chosen, example=example)
    report = {row.layer: row for row in _report(model) if row.layer in layers}
    rows = tuple(
        _cost(layers[name], report[name], shapes[name], chosen, macs, floats[name]) for name in layers if name in report
    )
    stored = sum(row.weight_bytes for row in rows)
    return Costs(
        layers=rows,
        macs=_by_bits(rows, macs),
        other_macs=macs.others,
        weight_bytes=stored,
        other_bytes=everything - sum(row.float_bytes for row in rows),
        float_bytes=everything,
        average_bits=_average(rows),
        unknown=tuple(_unknown(name, operators) for name, operators in macs.uncounted.items()),
    )


def _unknown(layer: str | None, operators: set[str]) -> str:
    place = "outside of all layers" if layer is None else layer
    return f"{place}: products of {', '.join(sorted(operators))} are not counted"


def _report(model: nn.Module) -> list[ReportRow]:
    report: list[ReportRow] = model.__dict__["quantization_report"]
    return report


def _own(module: nn.Module) -> list[Tensor]:
    """The weights of a layer: its parameters with at least two axes."""
    return [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]


def _weights(layers: dict[str, nn.Module]) -> dict[str, list[Tensor]]:
    """The weights of each layer; one that several share is the first's."""
    seen: set[int] = set()
    found: dict[str, list[Tensor]] = {}
    for name, module in layers.items():
        found[name] = [weight for weight in _own(module) if id(weight) not in seen]
        seen.update(map(id, found[name]))
    return found


def _nbytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _cost(
    layer: nn.Module, row: ReportRow, shapes: tuple[tuple[int, ...], ...], recipe: Recipe, macs: Macs, nbytes: int
) -> LayerCost:
    quantized = row.weights != "float" and isinstance(layer, QuantizedProduct)
    rule = "" if row.rule is None else f"{row.rule + 1} {recipe.rules[row.rule].condition}"
    return LayerCost(
        name=row.layer,
        kind=row.kind,
        shapes=shapes,
        rule=rule,
        weights=row.weights,
        activations=row.activations,
        weight_bits=_bits(row.weights),
        activation_bits=_bits(row.activations),
        macs=None if row.layer in macs.uncounted else macs.layers[row.layer],
        weight_bytes=layer.low_bit_weight().nbytes if quantized and isinstance(layer, QuantizedProduct) else nbytes,
        float_bytes=nbytes,
        why=row.note if row.weights == "float" or row.activations == "float" else "",
    )


def _bits(name: str) -> int:
    return FLOAT_BITS if name == "float" else formats.get(name).code_bits


def _by_bits(rows: Sequence[LayerCost], macs: Macs) -> dict[str, int]:
    found: dict[str, int] = {}
    products = [(f"{row.weight_bits}x{row.activation_bits}", row.macs) for row in rows]
    for bits, count in (*products, (f"{FLOAT_BITS}x{FLOAT_BITS}", macs.others)):
        if count:
            found[bits] = found.get(bits, 0) + count
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _average(rows: Sequence[LayerCost]) -> float | None:
    counts = [(row.weight_bits, row.float_bytes) for row in rows if row.weights != "float"]
    total = sum(count for _, count in counts)
    return sum(bits * count for bits, count in counts) / total if total else None
