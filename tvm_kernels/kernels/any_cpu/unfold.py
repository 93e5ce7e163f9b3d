"""im2col of codes, each window a row in any order: the input of a product with scales by group.

Each window is gathered into workspace in memory order, row by row, and its bytes are then permuted: with LLVM in runs
of consecutive bytes, each copied as one vector that may write past its end, as the next run overwrites that; in C
byte by byte.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.any_cpu.im2col import gather
from subbyte.tvm_kernels.kernels.any_cpu.rowwise import at, each_row
from subbyte.tvm_kernels.kernels.code_generator import current_code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built, kernel
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.operators.unfold import Unfold

LANES = 16  # bytes of the longest run that is copied at once

Integers = npt.NDArray[Any]


def cut_into_runs(order: Integers, longest: int = LANES) -> Integers:
    """[runs, 3]: first index in the row, first element of the window, and length of each run of `order`."""
    steps = np.flatnonzero(np.diff(order) != 1) + 1
    starts = np.concatenate([[0], steps, [len(order)]])
    cut = [first for begin, end in pairwise(starts) for first in range(begin, end, longest)]
    ends = [*cut[1:], len(order)]
    return np.array([(first, order[first], end - first) for first, end in zip(cut, ends, strict=True)])


def lanes_of(runs: Integers) -> int:
    """The power of two next to the mean run: wider vectors would write many bytes that are overwritten."""
    mean = float(runs[:, 2].mean())
    return next((lanes for lanes in (2, 4, 8) if mean <= lanes), LANES)


def _smallest(values: Integers) -> Integers:
    return values.astype(np.uint16 if int(values.max(initial=0)) < 1 << 16 else np.int32)


@kernel("unfold", serves=Unfold)
def unfold(op: Unfold) -> Built:
    shape, depth = op.geometry, op.geometry.depth
    channels, groups = shape.channels, shape.groups
    rows = shape.pixels
    order = np.asarray(op.order)
    lanes = lanes_of(cut_into_runs(order)) if current_code_generator() == "llvm" else 1
    runs = cut_into_runs(order, lanes)
    vectors = runs[runs[:, 0] + lanes <= depth] if lanes > 1 else runs[:0]
    first_scalar = int(vectors[-1, 0] + vectors[-1, 2]) if len(vectors) else 0
    with prim_func("unfold") as signature:
        source = signature.input(OWN_INPUTS[0], (shape.input_pixels * channels,), "uint8")
        to: Any = signature.constant("places", _smallest(vectors[:, 0])) if len(vectors) else None
        of: Any = signature.constant("elements", _smallest(vectors[:, 1])) if len(vectors) else None
        one_by_one: Any = signature.constant("order", _smallest(order[first_scalar:])) if first_scalar < depth else None
        target = signature.output(0, (rows * groups * depth,), "uint8")
        window = signature.workspace(depth + LANES)

        def permute(row: Any) -> None:
            if len(vectors):
                with T.serial(0, len(vectors)) as run:
                    index = T.bind(row + T.Cast("int32", to[run]))
                    values = window[at(T.Cast("int32", of[run]), lanes)]
                    T.buffer_store(target, values, [at(index, lanes)])
            if one_by_one is not None:
                with T.serial(0, depth - first_scalar) as i:
                    element = window[T.Cast("int32", one_by_one[i])]
                    T.buffer_store(target, element, [row + first_scalar + i])

        with each_row(rows, depth * groups) as row, T.serial(0, groups) as group:
            gather(
                shape,
                channels,
                lambda pixel, element: source[pixel * channels + element],
                window,
                row,
                1,
                group,
                lambda element: T.uint8(op.storage.zero_point),
            )
            permute(T.bind((row * groups + group) * depth))
    return signature.built()
