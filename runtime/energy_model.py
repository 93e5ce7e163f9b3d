"""Modelled energy: that of each operator on a 45 nm ASIC, from counts of operations and bytes.

Not a measurement. On a programmable processor, fetching and decoding instructions costs more than the arithmetic, so
these figures are for comparing models; no table mixes them with measured joules.

Each format defines the operations of one multiply-accumulate; their energy is in formats/energy.py.
Memories: Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from subbyte import formats
from subbyte.errors import EnergyError, UnknownNameError
from subbyte.formats import BINARY_LEVELS
from subbyte.formats.energy import ELEMENTWISE, FLOAT, OPERATIONS_PJ
from subbyte.runtime.manifest import DTYPES, Manifest, OperatorCall

# (holds this many bytes at most, pJ for each 64 bits moved)
MEMORIES_PJ: tuple[tuple[str, int | None, float], ...] = (
    ("cache 8 KB", 8 << 10, 10.0),
    ("cache 32 KB", 32 << 10, 20.0),
    ("cache 1 MB", 1 << 20, 100.0),
    ("DRAM", None, 1300.0),  # the lower end of 1,300 .. 2,600, which favours low bit least
)

ASSUMPTIONS = (
    "One memory model for every operator: it reads its weights and inputs once and writes its outputs once. Weights "
    "are in the smallest memory that holds all weights, activations in the smallest that holds the arena.",
    "Products of 2 to 8 bit integers: an int8 multiply and an int32 add, whatever the bits (none published for fewer).",
    "Ternary weights, and binary weights with integer activations: an int32 add; zeros are not skipped.",
    "Power-of-two weights: a 32-bit shift (the product is wider than 8 bits) and an int32 add.",
    "Binary weights with binary activations: for 32 products one xor, one popcount and one int32 add.",
    "Real levels: a table look-up, a float32 multiply and a float32 add.",
    "Float: a float32 multiply and add. Epilogues and operators without products: one float32 multiply and add for "
    "each output element, or what the operator states: a table look-up reads one entry.",
)

NO_FORMAT = ("-", "float32", "float", "")
PACKED_SIGNS = ("binary", "bits", "uint32")  # as bundles since 0.1.0 have called them


@dataclass(frozen=True)
class OperatorEnergy:
    """Modelled picojoules of one operator."""

    name: str
    arithmetic: str  # the operations of one multiply-accumulate; without products, those for each element
    modelled_compute_pj: float
    modelled_memory_pj: float

    @property
    def modelled_pj(self) -> float:
        return self.modelled_compute_pj + self.modelled_memory_pj


@dataclass(frozen=True)
class ModelledEnergy:
    """Modelled picojoules of one inference, with the table and the assumptions they rest on."""

    modelled_pj: float
    weights_memory: str
    activations_memory: str
    operators: tuple[OperatorEnergy, ...]
    operations_pj: dict[str, float]
    memories_pj_per_64_bits: dict[str, float]
    assumptions: tuple[str, ...]
    source: str = "Horowitz, ISSCC 2014 (45 nm); shifts: ShiftAddViT, NeurIPS 2023"
    provenance: Literal["modelled"] = "modelled"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def model_energy(manifest: Manifest) -> ModelledEnergy:
    """The modelled energy of one inference, per operator, from the counts in the manifest."""
    held = manifest.arena_bytes + manifest.state_bytes
    return model_operators(manifest.operators, manifest.weights_bytes, held)


def model_operators(operators: Sequence[OperatorCall], weights_bytes: int, held_bytes: int) -> ModelledEnergy:
    """The modelled energy of one inference by these operators; `held_bytes`: of the arena and of what lives between
    runs."""
    weights_memory, weights_pj = memory_for(weights_bytes)
    activations_memory, activations_pj = memory_for(held_bytes)
    rows = tuple(_operator(operator, weights_pj, activations_pj) for operator in operators)
    return ModelledEnergy(
        modelled_pj=sum(row.modelled_pj for row in rows),
        weights_memory=weights_memory,
        activations_memory=activations_memory,
        operators=rows,
        operations_pj=dict(OPERATIONS_PJ),
        memories_pj_per_64_bits={name: pj for name, _, pj in MEMORIES_PJ},
        assumptions=ASSUMPTIONS,
    )


def memory_for(nbytes: int) -> tuple[str, float]:
    """The smallest memory that holds `nbytes`: its name, and its pJ for each 64 bits."""
    for name, limit, pj in MEMORIES_PJ:
        if limit is None or nbytes <= limit:
            return name, pj
    raise AssertionError("the last memory has no limit")


def per_mac(activation: str, weights: str) -> Mapping[str, float]:
    """What one multiply-accumulate is made of in a manifest that gives only the names of the formats.

    `activation` and `weights` are as the manifest has them: "-" where there are no constant weights. Raises EnergyError
    for a format that is not registered.
    """
    if weights in NO_FORMAT:
        return dict(FLOAT.operations)
    fmt = _registered(weights)
    if activation in NO_FORMAT:
        levels = None
    else:
        levels = BINARY_LEVELS if activation in PACKED_SIGNS else _registered(activation).levels
    return dict(fmt.per_mac(levels).operations)


def _registered(name: str) -> formats.Format:
    try:
        return formats.get(name)
    except UnknownNameError as error:
        raise EnergyError(
            f"no energy is known of {error} Import the module that registers it, or build the bundle again with "
            "`subbyte compile`, which writes the operations of its products"
        ) from error


def _operator(operator: OperatorCall, weights_pj: float, activations_pj: float) -> OperatorEnergy:
    # older manifests have neither
    made_of = operator.per_mac or per_mac(operator.activation, operator.weights)
    per_element = ELEMENTWISE if operator.per_element is None else operator.per_element
    elements = max((_elements(output.shape, output.storage, output.channels) for output in operator.outputs), default=0)
    if not elements:
        elements = operator.output_bytes // DTYPES["float32"]
    compute = operator.macs * _cost(operator, made_of) + elements * _cost(operator, per_element)
    moved = operator.input_bytes + operator.output_bytes
    memory = (operator.weight_bytes * weights_pj + moved * activations_pj) / 8
    name = " + ".join(made_of)
    if not operator.macs:
        name = "elementwise" if per_element == ELEMENTWISE else " + ".join(per_element)
    return OperatorEnergy(operator.name, name, compute, memory)


def _cost(operator: OperatorCall, operations: Mapping[str, float]) -> float:
    """pJ of operations; raises EnergyError for one that the table does not have."""
    unknown = [name for name in operations if name not in OPERATIONS_PJ]
    if unknown:
        raise EnergyError(
            f"operator '{operator.name}' counts '{unknown[0]}', of which no energy is known; known are "
            f"{', '.join(OPERATIONS_PJ)}: add it to OPERATIONS_PJ of formats/energy.py with its source"
        )
    return sum(count * OPERATIONS_PJ[name] for name, count in operations.items())


def _elements(shape: tuple[int, ...], storage: str, channels: int) -> int:
    count = 1
    for axis in shape[:-1] if storage == "bits" else shape:
        count *= axis
    return count * channels if storage == "bits" else count
