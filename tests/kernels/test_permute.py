"""Permutations of axes: every way, every row, through LLVM and as C; not one bit may differ from numpy.transpose."""

from __future__ import annotations

from itertools import pairwise, permutations
from math import prod
from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, rows_here
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte.tvm_kernels.kernels.permute import merged
from subbyte.tvm_kernels.operators import Permute

KERNELS: list[Any] = [(name, "llvm") for name in rows_here(Permute)] + [("permute-portable", "c")]
CASES = [
    ((196, 256), (1, 0)),
    ((70, 53), (1, 0)),  # tails on both sides
    ((17, 16), (1, 0)),
    ((9, 5), (1, 0)),
    ((1, 3, 24, 23), (0, 2, 3, 1)),  # few channels, last
    ((1, 24, 23, 3), (0, 3, 1, 2)),  # and first
    ((2, 4, 5, 5), (0, 2, 3, 1)),
    ((5, 2, 3), (0, 2, 1)),
    ((2, 40, 7, 5), (0, 2, 3, 1)),
    ((1, 19, 3, 2, 21), (2, 0, 3, 1, 4)),  # attention: the heads' channels stay together
    ((19, 3, 64), (1, 0, 2)),
    ((3, 2, 19, 20), (0, 1, 3, 2)),
    ((130, 2, 33), (2, 1, 0)),
    ((7, 3, 40), (1, 2, 0)),
    ((1, 1, 1), (2, 0, 1)),
    ((1, 40), (1, 0)),
]


def elements(shape: tuple[int, ...], dtype: str) -> Any:
    """All different in float32; in uint8 as different as bytes can be."""
    return np.random.default_rng(prod(shape)).permutation(prod(shape)).astype(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(("kernel", "by"), KERNELS)
@pytest.mark.parametrize(("shape", "perm"), CASES, ids=str)
def test_permute(shape: tuple[int, ...], perm: tuple[int, ...], kernel: str, by: Generator, dtype: Any) -> None:
    assert differing(Permute("p", shape, perm, dtype), kernel, [elements(shape, dtype)], by) == 0


@st.composite
def moves(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    rank = draw(st.integers(2, 5))
    longest = {2: 150, 3: 40, 4: 18, 5: 9}[rank]
    shape = tuple(draw(st.lists(st.integers(1, longest), min_size=rank, max_size=rank)))
    return shape, tuple(draw(st.permutations(range(rank)))), draw(st.sampled_from(["float32", "uint8"]))


@settings(max_examples=60, deadline=None)
@given(moves(), st.sampled_from(rows_here(Permute)))
def test_any_permutation(move: Any, kernel: str) -> None:
    shape, perm, dtype = move
    assert differing(Permute("p", shape, perm, dtype), kernel, [elements(shape, dtype)]) == 0


@settings(max_examples=8, deadline=None)
@given(moves())
def test_any_permutation_as_c(move: Any) -> None:
    shape, perm, dtype = move
    assert differing(Permute("p", shape, perm, dtype), "permute-portable", [elements(shape, dtype)], "c") == 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 3, 1, 5, 2), (4, 1, 1, 2, 1), (1, 1, 1, 1, 1)])
def test_merged_axes_move_the_same_elements(shape: tuple[int, ...]) -> None:
    x = np.arange(prod(shape))
    for perm in permutations(range(5)):
        sizes, order = merged(shape, perm)
        assert 1 not in sizes
        assert not any(b == a + 1 for a, b in pairwise(order))
        want = x.reshape(shape).transpose(perm).ravel()
        np.testing.assert_array_equal(x.reshape(sizes).transpose(order).ravel(), want)
