"""Structures: binary planes that are added up, and columns of two formats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import CompileError, FormatError, RegistrationError
from subbyte.formats import LowBitTensor, PerChannel, PerGroup, SelectColumns, Structure, Sum, get
from subbyte.formats.structure import COMBINATIONS, Combination
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.operators import Codes, Float, MatMul, Product

RNG = np.random.default_rng(8)


def part(fmt: str, *shape: int, group: int = 0) -> LowBitTensor:
    granularity = PerGroup(group) if group else PerChannel()
    scale = RNG.uniform(0.1, 2, granularity.scale_shape((shape[0], int(np.prod(shape[1:])))))
    return LowBitTensor.from_levels(get(fmt), RNG.choice(get(fmt).levels.values, shape), scale, granularity)


def example(combination: type[Combination]) -> Structure:
    return combination.example(np.random.default_rng(4))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_combination_is_whole(combination: type[Combination]) -> None:
    """Its values have its shape, and depend on every part in proportion to the scales of all."""
    whole = example(combination)
    assert type(whole.combination) is combination
    values = whole.dequantize()
    assert (values.dtype, values.shape) == (np.float32, whole.shape)
    for number, of in enumerate(whole.parts):
        parts = list(whole.parts)
        parts[number] = replace(of, scale=2 * of.scale)
        assert not np.array_equal(replace(whole, parts=tuple(parts)).dequantize(), values)
    doubled = replace(whole, parts=tuple(replace(of, scale=2 * of.scale) for of in whole.parts))
    assert np.array_equal(doubled.dequantize(), 2 * values)
    assert whole.nbytes == sum(of.nbytes for of in whole.parts) + whole.combination.nbytes


@pytest.mark.parametrize("part", ["nbytes", "shape", "values", "example"])
def test_a_combination_that_lacks_a_part_is_refused(part: str) -> None:
    before = list(COMBINATIONS)
    whole = {"nbytes": 0, "shape": Sum.shape, "values": Sum.values, "example": classmethod(example)}
    with pytest.raises(RegistrationError, match=f"combination Partial has no {part}; expected all of nbytes, shape"):
        type("Partial", (Combination,), {name: given for name, given in whole.items() if name != part})
    assert before == COMBINATIONS


def test_a_structure_without_a_combination_is_refused() -> None:
    with pytest.raises(FormatError, match=r"combined by <object.*>, expected a Combination: Sum, SelectColumns, or"):
        Structure((part("int4", 2, 3),), object())  # type: ignore[arg-type]


def test_planes_are_added_up() -> None:
    """v = sum over m of alpha_m[row] x b_m, spelled out element by element."""
    alpha, signs = np.float32([[0.5, 2.0], [0.25, 0.125]]), RNG.choice([-1, 1], (2, 2, 6))
    parts = tuple(
        LowBitTensor.from_levels(get("binary"), b, a, PerChannel()) for a, b in zip(alpha, signs, strict=True)
    )
    whole = Structure(parts, Sum())
    wanted = [[sum(alpha[m, i] * signs[m, i, j] for m in (0, 1)) for j in range(6)] for i in (0, 1)]
    assert whole.dequantize().tolist() == wanted
    assert (whole.shape, whole.name) == ((2, 6), "Sum(binary, binary)")
    assert whole.nbytes == 2 * (2 * 1 + 2 * 4)  # a byte of signs and a scale for each row and plane
    assert whole.bits_per_weight == 8 * 20 / 12


def test_columns_of_two_formats() -> None:
    whole = example(SelectColumns)
    assert (whole.shape, whole.name) == ((4, 7), "SelectColumns(binary, int4)")
    few = whole.parts[1].dequantize()
    assert np.array_equal(whole.dequantize()[:, [2, 4]], few)
    assert np.array_equal(whole.dequantize()[:, [0, 1, 3, 5, 6]], whole.parts[0].dequantize())
    assert whole.nbytes == (4 * 1 + 16) + (4 * 1 + 16) + 7


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(1, 5))
def test_a_selection_of_the_columns_of_one_tensor_is_that_tensor(index: list[int], rows: int) -> None:
    levels = np.random.default_rng(len(index)).integers(-8, 8, (rows, len(index)))
    scale = np.arange(1, rows + 1, dtype=np.float32)
    chosen = np.array(index, np.uint8)
    parts = tuple(
        LowBitTensor.from_levels(get("int4"), levels[:, chosen == number], scale, PerChannel()) for number in range(3)
    )
    found = Structure(parts, SelectColumns(chosen)).dequantize()
    np.testing.assert_array_equal(found, levels * scale[:, None])


@pytest.mark.parametrize(
    ("parts", "combination", "reason"),
    [
        ((), Sum(), "no parts"),
        (((2, 3), (2, 4)), Sum(), r"part 1 has shape \(2, 4\), expected that of part 0, \(2, 3\)"),
        (((2, 3), (2, 4)), SelectColumns(np.array([0, 1, 0, 1, 1], np.uint8)), r"expected \(2, 2\)"),
        (((2, 3), (3, 2)), SelectColumns(np.array([0, 1, 0, 1, 0], np.uint8)), r"part 1 has shape \(3, 2\)"),
        (((2, 2),), SelectColumns(np.array([0, 1], np.uint8)), "index has part 1, expected 0 to 0"),
        (((2, 2),), SelectColumns(np.array([0, 0])), r"index is int64 \(2,\), expected uint8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any, combination: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        Structure(tuple(part("int4", *shape) for shape in parts), combination)


@pytest.mark.parametrize("left", [Float(), Codes(-128, 127, 128)], ids=["float", "codes"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_product_has_a_reference_and_is_refused_by_name(combination: type[Combination], left: Any) -> None:
    whole = example(combination)
    rows, depth = whole.shape
    op = Product("p", left, whole, MatMul(2, depth, rows), ops.Epilogue())
    stored = RNG.integers(0, 256, (2, depth)).astype(np.uint8) if left.integer else np.float32(RNG.random((2, depth)))
    wanted = left.levels(stored).astype(np.float64) @ whole.dequantize().T.astype(np.float64)
    np.testing.assert_allclose(ops.run(op, [stored])[0], wanted, rtol=1e-6)
    assert op.facts().weights == whole.name
    operands = f"{type(left).__name__}, Structure"
    with pytest.raises(CompileError, match=rf"no kernel for 'p'.*no row is for Product\[{operands}\].*register a row"):
        choose(op, frozenset({"avx512f", "avx2", "fma"}))
