"""Modelled energy against sums done by hand from Horowitz's table."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_bundle import operator, output, tiny_manifest

from subbyte.errors import EnergyError
from subbyte.runtime import manifest
from subbyte.runtime.energy import Energy
from subbyte.runtime.energy_model import OPERATIONS_PJ, ModelledEnergy, memory_for, model_energy, per_mac


def modelled(weights_bytes: int = 128, arena_bytes: int = 128, **fields: Any) -> ModelledEnergy:
    row = operator("op", [output("y")], kind="QuantizedProduct", **fields)
    data = {**tiny_manifest(), "operators": [row], "members": {}}
    return model_energy(manifest.from_dict({**data, "weights_bytes": weights_bytes, "arena_bytes": arena_bytes}))


@pytest.mark.parametrize(
    ("activation", "weights", "pj_a_mac"),
    [
        ("float32", "-", 4.6),
        ("float32", "float32", 4.6),
        ("uint8", "int8", 0.3),
        ("int8", "int4", 0.3),
        ("uint8", "ternary", 0.1),
        ("uint8", "pow2_4", 0.23),
        ("uint8", "binary", 0.1),
        ("bits", "binary", 0.3 / 32),
    ],
)
def test_a_multiply_accumulate_by_formats(activation: str, weights: str, pj_a_mac: float) -> None:
    operations = per_mac(activation, weights)
    assert sum(n * OPERATIONS_PJ[name] for name, n in operations.items()) == pytest.approx(pj_a_mac)
    assert modelled(activation=activation, weights=weights, macs=10).operators[0].modelled_compute_pj == pytest.approx(
        10 * pj_a_mac + 48 * 4.6
    )
    stated = modelled(activation="?", weights="?", per_mac=operations, macs=10).operators[0]
    assert stated.modelled_compute_pj == pytest.approx(10 * pj_a_mac + 48 * 4.6)


@pytest.mark.parametrize(("activation", "weights"), [("uint8", "pow2"), ("uint8", "binary_like"), ("int7x", "int4")])
def test_a_format_that_is_not_registered_is_an_error(activation: str, weights: str) -> None:
    """Also one whose name begins like another's: nothing is counted as its namesake, or as zero."""
    with pytest.raises(EnergyError, match=r"no energy is known of unknown format .*build the bundle again"):
        modelled(activation=activation, weights=weights, macs=10)


@pytest.mark.parametrize(
    ("nbytes", "pj"), [(0, 10), (8192, 10), (8193, 20), (32768, 20), (1 << 20, 100), ((1 << 20) + 1, 1300)]
)
def test_the_smallest_memory_that_holds_it(nbytes: int, pj: float) -> None:
    assert memory_for(nbytes)[1] == pj


def test_one_operator_by_hand() -> None:
    """1,000 ternary products, 48 outputs; 64 bytes of weights from 8 KB, 80 + 192 bytes of activations from 32 KB."""
    counts = {"macs": 1000, "weight_bytes": 64, "input_bytes": 80, "output_bytes": 192}
    found = modelled(arena_bytes=20_000, activation="uint8", weights="ternary", **counts)
    row = found.operators[0]
    assert row.modelled_compute_pj == pytest.approx(1000 * 0.1 + 48 * 4.6)
    assert row.modelled_memory_pj == pytest.approx(64 / 8 * 10 + 272 / 8 * 20)
    assert found.modelled_pj == pytest.approx(row.modelled_pj)
    assert (found.weights_memory, found.activations_memory) == ("cache 8 KB", "cache 32 KB")


def test_an_operator_states_what_an_element_takes() -> None:
    """A table look-up of 48 elements reads 48 entries; without a word it is one multiply and one add each."""
    looked_up, plain = (modelled(**fields).operators[0] for fields in ({"per_element": {"8 KB table read": 1}}, {}))
    assert (looked_up.arithmetic, plain.arithmetic) == ("8 KB table read", "elementwise")
    assert looked_up.modelled_compute_pj == pytest.approx(48 * 10.0)
    assert plain.modelled_compute_pj == pytest.approx(48 * 4.6)


def test_an_unknown_operation_is_an_error() -> None:
    with pytest.raises(EnergyError, match="'op' counts 'frob', of which no energy is known; known are int8 add"):
        modelled(per_element={"float32 add": 1, "frob": 2})


def test_every_operator_pays_for_memory_alike() -> None:
    """No format is let off: equal bytes cost equally, whatever the arithmetic."""
    costs = {
        modelled(activation=a, weights=w, macs=9, weight_bytes=64).operators[0].modelled_memory_pj
        for a, w in (("float32", "-"), ("uint8", "ternary"), ("uint8", "pow2_3"), ("bits", "binary"))
    }
    assert len(costs) == 1


def test_packed_bits_count_their_channels() -> None:
    signs = output("s", storage="bits", dtype="uint32", shape=[1, 4, 4, 1], channels=3, space="arena", bytes=64)
    data = {**tiny_manifest(), "operators": [operator("op", [signs])], "members": {}}
    found = model_energy(manifest.from_dict(data))
    assert found.operators[0].modelled_compute_pj == pytest.approx(48 * 4.6)


def test_it_says_that_it_is_modelled_and_on_what() -> None:
    plain = modelled().to_json()
    assert plain["provenance"] == "modelled"
    assert plain["operations_pj"]["int8 multiply"] == 0.2
    assert any("One memory model for every operator" in line for line in plain["assumptions"])
    assert "Horowitz" in plain["source"]


def test_measured_and_modelled_share_no_figure() -> None:
    measured = {name for name in Energy.__dataclass_fields__ if "joules" in name or name.endswith(("_w", "_pj"))}
    figures = {name for name in ModelledEnergy.__dataclass_fields__ if "joules" in name or name.endswith(("_w", "_pj"))}
    assert measured
    assert not measured & figures
    assert all(name.startswith("modelled") or name in ("operations_pj",) for name in figures)
