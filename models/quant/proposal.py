"""A recipe that reaches an average of bits, from measured sensitivities.

Layers are ordered by their noise at the scheme of the fewest bits. The most sensitive get the scheme of the most bits,
the next ones the scheme below it, and so on; among all places to cut this order whose average is not above what is
asked, those with the least sum of noise are taken. Ordering layers by sensitivity is the method of Dong et al.,
"HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision", 2019, whose measure is the largest
eigenvalue of the Hessian; adding up the noise that single layers cause is that of Zhou et al., "Adaptive Quantization
for Deep Neural Network", 2018. Choosing the cuts by trying all of them is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations_with_replacement
from math import comb

from subbyte.errors import QuantizationError
from subbyte.models.quant.recipe import Recipe, Rule
from subbyte.models.quant.sensitivities import LayerSensitivity, Sensitivities

MOST_CUTS = 2_000_000  # places to cut the order that are tried: seconds


@dataclass(frozen=True)
class Proposal:
    """A recipe, its average bits of a weight (codes, without scales), and the sum of the noise of its layers."""

    recipe: Recipe
    bits: float
    noise: float
    ordered_by: str  # the scheme whose table the rules have


def propose(found: Sensitivities, bits: float | None = None, share: float | None = None) -> Proposal:
    """The recipe of least noise whose weights have at most `bits` on average.

    `share` in its place, 0 to 1, is the way from the scheme of the fewest bits to that of the most. Raises
    QuantizationError for a number that no recipe of the measured schemes reaches, and for a layer that cannot take one
    of them.
    """
    labels = _by_bits(found)
    order, least = _order(found, labels), found.of(labels[0])
    columns = [[found.of(label)[name] for name in order] for label in labels]
    low, high = (_average(column) for column in (columns[0], columns[-1]))
    if share is not None:
        bits = low + share * (high - low)
    if bits is None or bits < low or (share is not None and not 0 <= share <= 1):
        raise QuantizationError(
            f"{share if bits is None or share is not None else bits:g} cannot be reached: the measured schemes take "
            f"{low:g} to {high:g} bits on average, a share is 0 to 1; measure other schemes, or ask for more"
        )
    cuts = _best(columns, [row.noise or 0.0 for row in columns[0]], bits)
    chosen = _chosen(columns, cuts)
    total = sum(row.weights for row in chosen)
    recipe = _recipe(found, labels, [least[name] for name in order], cuts)
    average = sum(row.bits * row.weights for row in chosen) / total
    return Proposal(recipe, average, sum(row.noise or 0.0 for row in chosen), labels[0])


def _by_bits(found: Sensitivities) -> list[str]:
    """The labels of the measured schemes, those of fewer bits first."""
    bits = {row.scheme: row.bits for row in found.rows}
    if len(bits) < 2 or len(set(bits.values())) != len(bits):
        told = ", ".join(f"{name} ({number} bits)" for name, number in bits.items())
        raise QuantizationError(f"measured are {told or 'no layers'}; a proposal needs two schemes of different bits")
    for row in found.rows:
        if row.noise is None:
            raise QuantizationError(f"{row.why}; measure schemes that every layer can take")
    return sorted(bits, key=lambda name: bits[name])


def _order(found: Sensitivities, labels: Sequence[str]) -> list[str]:
    """The layers, the most sensitive first; equals in the order of the model."""
    table = found.table(labels[0])
    return sorted(table, key=lambda name: -table[name])


def _average(column: Sequence[LayerSensitivity]) -> float:
    return sum(row.bits * row.weights for row in column) / sum(row.weights for row in column)


def _best(columns: Sequence[Sequence[LayerSensitivity]], noise: Sequence[float], bits: float) -> tuple[int, ...]:
    """Where the order is cut: before which index each scheme but the lowest ends, that of the most bits first."""
    count, schemes = len(noise), len(columns)
    if comb(count + schemes - 1, schemes - 1) > MOST_CUTS:
        raise QuantizationError(f"{schemes} schemes for {count} layers are too many to try; measure fewer schemes")
    stored = [[0, *accumulate(row.bits * row.weights for row in column)] for column in reversed(columns)]
    caused = [[0.0, *accumulate(row.noise or 0.0 for row in column)] for column in reversed(columns)]
    most = bits * sum(row.weights for row in columns[0]) * (1 + 1e-12)
    best: tuple[float, int, tuple[int, ...]] | None = None
    for cuts in _cuts(noise, schemes):
        spans = list(zip((0, *cuts), (*cuts, count), strict=True))
        size = sum(sums[end] - sums[start] for sums, (start, end) in zip(stored, spans, strict=True))
        if size <= most:
            found = sum(sums[end] - sums[start] for sums, (start, end) in zip(caused, spans, strict=True)), size, cuts
            best = found if best is None else min(best, found)
    assert best is not None  # no cut at all fits, or it was refused
    return best[2]


def _cuts(noise: Sequence[float], schemes: int) -> Iterator[tuple[int, ...]]:
    """All places to cut, but for those between layers of equal noise, which no number divides."""
    count = len(noise)
    places = [i for i in range(count + 1) if i in (0, count) or noise[i - 1] > noise[i]]
    return combinations_with_replacement(places, schemes - 1)


def _chosen(columns: Sequence[Sequence[LayerSensitivity]], cuts: Sequence[int]) -> list[LayerSensitivity]:
    spans = zip((0, *cuts), (*cuts, len(columns[0])), reversed(columns), strict=True)
    return [row for start, end, column in spans for row in column[start:end]]


def _recipe(
    found: Sensitivities, labels: Sequence[str], order: Sequence[LayerSensitivity], cuts: Sequence[int]
) -> Recipe:
    """A rule for each scheme that gets layers, by the noise between which the order is cut."""
    schemes = {scheme.label: scheme for scheme in found.schemes}
    rules, start = [], 0
    table = found.table(labels[0])
    for label, end in zip(reversed(labels), (*cuts, len(order)), strict=True):
        if end == start:
            continue
        if end == len(order):
            rules.append(Rule(schemes[label]))
            break
        rules.append(Rule(schemes[label], sensitivity=table, above=_between(order[end], order[end - 1])))
        start = end
    return Recipe(tuple(rules))


def _between(below: LayerSensitivity, above: LayerSensitivity) -> float:
    """A number of few digits between the noise of two layers; that of the lower one where there is none."""
    low, high = below.noise or 0.0, above.noise or 0.0
    for digits in range(1, 8):
        middle = float(f"{(low + high) / 2:.{digits}g}")
        if low <= middle < high:
            return middle
    return low
