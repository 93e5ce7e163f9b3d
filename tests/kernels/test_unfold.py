"""Windows as lines, in any order, through LLVM and as C; no byte may differ from the reference."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import Generator, differing, row
from hypothesis import given, settings
from hypothesis import strategies as st

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.abi import Wanted, compile_objects
from subbyte.tvm_kernels.kernels.any_cpu.unfold import cut_into_runs
from subbyte.tvm_kernels.kernels.tir import execute
from subbyte.tvm_kernels.operators import Codes, Conv2d
from subbyte.tvm_kernels.operators.unfold import Unfold

BOTH: list[Generator] = ["llvm", "c"]
GEOMETRIES = {
    "one element": Conv2d(1, 1, 1, 1, 1, (1, 1)),
    "padded": Conv2d(1, 5, 6, 7, 1, (3, 3), padding=(1, 1, 1, 1)),
    "uneven padding, stride, dilation, batch": Conv2d(2, 9, 11, 3, 1, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2)),
    "groups": Conv2d(1, 7, 9, 12, 2, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
    "one dimension": Conv2d(1, 1, 30, 33, 1, (1, 5), padding=(0, 2, 0, 2)),
    "window larger than the image": Conv2d(1, 2, 2, 4, 1, (5, 5), padding=(2, 2, 2, 2)),
    "many tiles": Conv2d(1, 21, 20, 40, 1, (3, 3), padding=(1, 1, 1, 1)),
}


def orders(depth: int) -> dict[str, Any]:
    """As it lies, backwards, shuffled, and in runs of 5 (not a power of two)."""
    places = np.arange(depth)
    pieces = [places[first : first + 5] for first in range(0, depth, 5)]
    shuffled = np.random.default_rng(depth)
    return {
        "as it lies": places,
        "backwards": places[::-1],
        "shuffled": shuffled.permutation(depth),
        "runs": np.concatenate([pieces[i] for i in shuffled.permutation(len(pieces))]),
    }


def image(shape: Conv2d) -> Any:
    size = shape.batch * shape.height * shape.width * shape.channels
    return np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("order", ["as it lies", "backwards", "shuffled", "runs"])
@pytest.mark.parametrize("shape", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_unfold(shape: Conv2d, order: str, by: Generator) -> None:
    op = Unfold("u", shape, Codes(-37, 218, 37), orders(shape.depth)[order])
    assert differing(op, "unfold", [image(shape)], by) == 0


def test_the_reference_reads_windows_as_they_lie() -> None:
    """One window of 2x2 places and 2 channels, padded above: the order of a line written out by hand."""
    shape = Conv2d(1, 1, 2, 2, 1, (2, 2), padding=(1, 0, 0, 0))
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # channel by channel
    (line,) = operators.run(Unfold("u", shape, Codes(-128, 127, 9), order), [np.array([1, 2, 3, 4], np.uint8)])
    assert line.tolist() == [[[[9, 9, 1, 3, 9, 9, 2, 4]]]]


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(1, 20), st.randoms(use_true_random=False))
def test_runs_cover_every_place_once(depth: int, longest: int, random: Any) -> None:
    order = list(range(depth))
    random.shuffle(order)
    runs = cut_into_runs(np.array(order), longest)
    assert runs[:, 2].max() <= longest
    assert [element + i for _, element, length in runs for i in range(length)] == order
    assert [place + i for place, _, length in runs for i in range(length)] == list(range(depth))


def test_no_two_tiles_write_the_same_byte(tmp_path: Path) -> None:
    """Vectors of a run write past its end: never past the end of a tile."""
    shape = Conv2d(1, 21, 20, 40, 1, (3, 3), padding=(1, 1, 1, 1))
    built = row(Unfold, "unfold").build(Unfold("u", shape, Codes(0, 255), orders(shape.depth)["runs"]))
    made = compile_objects([Wanted("kernel", built.function)], execute.host_target())
    (tmp_path / "kernel.o").write_bytes(made.code)
    library = tmp_path / "kernel.so"
    subprocess.run(["gcc", "-shared", str(tmp_path / "kernel.o"), "-o", str(library)], check=True)
    run = ctypes.CDLL(str(library)).kernel
    arguments, (target,) = execute.Executable(built).bind([image(shape)])
    arrays = [np.from_dlpack(argument) for argument in arguments]
    (tiles,) = [signature.tiles for signature in made.signatures]
    assert tiles > 1
    writes = np.zeros(target.size, int)
    for tile in range(tiles):
        written = np.zeros(target.size, bool)
        for fill in (0, 255):
            target[...] = fill
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
            assert run(*pointers, ctypes.c_int32(tile), ctypes.c_int32(tile + 1)) == 0
            written |= target != fill
        writes += written
    assert (writes == 1).all()
