"""Permutations of axes: every way, every row, through LLVM and as C; not one bit may differ from numpy.transpose."""

from __future__ import annotations

import ctypes
import subprocess
from itertools import pairwise, permutations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, row, rows_here
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte.tvm_kernels.abi import Wanted, compile_objects
from subbyte.tvm_kernels.kernels.any_cpu.permute import merged
from subbyte.tvm_kernels.kernels.tir import execute
from subbyte.tvm_kernels.operators.permute import Permute

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


@settings(max_examples=60)
@given(moves(), st.sampled_from(rows_here(Permute)))
def test_any_permutation(move: Any, kernel: str) -> None:
    shape, perm, dtype = move
    assert differing(Permute("p", shape, perm, dtype), kernel, [elements(shape, dtype)]) == 0


@settings(max_examples=8)
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


@pytest.mark.parametrize(
    ("shape", "perm"),
    [((203, 250), (1, 0)), ((250, 204), (1, 0)), ((3, 70, 131), (0, 2, 1)), ((1, 3, 149, 151), (0, 2, 3, 1))],
    ids=str,
)
@pytest.mark.parametrize("kernel", rows_here(Permute))
def test_no_two_tiles_write_the_same_byte(shape: Any, perm: Any, kernel: str, tmp_path: Path) -> None:
    """Each tile alone: what it writes shows on a target full of zeros, or on one full of ones."""
    chosen = row(Permute, kernel)
    function = chosen.build(Permute("p", shape, perm)).function
    made = compile_objects([Wanted("kernel", function)], execute.host_target(chosen.needs))
    (tmp_path / "kernel.o").write_bytes(made.code)
    library = tmp_path / "kernel.so"
    subprocess.run(["gcc", "-shared", str(tmp_path / "kernel.o"), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).kernel
    x = execute.aligned(shape, np.float32)
    x[...] = elements(shape, "float32")
    (tiles,) = [signature.tiles for signature in made.signatures]
    writes = np.zeros(x.size, int)
    assert tiles > 1
    for tile in range(tiles):
        written = np.zeros(x.size, bool)
        for fill in (0.0, 1.0):
            target = execute.aligned((x.size,), np.float32)
            target[...] = fill
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, target)]
            assert run(*pointers, ctypes.c_int32(tile), ctypes.c_int32(tile + 1)) == 0
            written |= target != fill
        writes += written
    assert (writes == 1).all()
