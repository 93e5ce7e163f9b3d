"""Schedules for operators that TVM legalised: elementwise operators, data movement and reductions between our kernels.

Producers are inlined where that is possible. If one block remains, its outer loops are fused and distributed over
threads, its innermost is vectorized, and the initial value of a reduction is set before it. If several blocks remain
(for instance of a norm), they run one after another in one tile, with their buffers in the workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, te
from tvm.ir.expr import Call
from tvm.s_tir import Schedule
from tvm.tirx import IterVar

SMALL = 8192  # elements; below, distributing over threads costs more than it gains
LANES = (16, 8, 4)  # float32 in a vector, the widest that divides the innermost loop
ONE_BY_ONE = {"tirx.sinh", "tirx.cosh"}  # functions of the C library, which TVM calls for scalars alone


def scheduled(function: Any) -> Any:
    """A PrimFunc of TVM's legaliser with loops fit for a CPU; buffers and results stay as they are."""
    if not isinstance(function.body, s_tir.SBlockRealize) or function.body.block.name_hint != "root":
        return function  # loops whose order matters: our own, or those that TVM wrote by hand
    sch = Schedule(tvm.IRModule({"main": function}))
    root = _root(sch)
    for block in sch.get_child_blocks(root):
        _inline(sch, block)
    blocks = sch.get_child_blocks(root)
    if len(blocks) == 1:
        _one(sch, blocks[0])
    return sch.mod["main"].without_attr("global_symbol")


def _root(sch: Any) -> Any:
    return sch.get_sblock("root")


def _inline(sch: Any, block: Any) -> None:
    for attempt in (sch.compute_inline, sch.reverse_compute_inline):
        try:
            attempt(block)
        except tvm.s_tir.ScheduleError:
            continue
        return


def _one(sch: Any, block: Any) -> None:
    loops = sch.get_loops(block)
    kinds = [var.iter_type for var in sch.get(block).iter_vars]
    if len(kinds) != len(loops) or not loops:
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == IterVar.DataPar]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != IterVar.DataPar]
    if not spatial:
        return
    if reduced:
        sch.reorder(*spatial, *reduced)
    elements = int(np.prod([int(sch.get(loop).extent) for loop in spatial]))
    outer, inner = spatial[:-1], spatial[-1]
    if not reduced and not _calls_one_by_one(sch.get(block)):
        inner = _vectorized(sch, inner)
        if inner is not None:
            outer = [*outer, inner]
    else:
        outer = spatial
    if outer and elements >= SMALL:
        fused = sch.fuse(*outer) if len(outer) > 1 else outer[0]
        sch.parallel(fused)
    if reduced:
        sch.decompose_reduction(block, reduced[0])


def _calls_one_by_one(block: Any) -> bool:
    calls: list[Any] = []
    tvm_ffi.structural_walk(block, (Call, calls.append))
    return any(getattr(call.op, "name", "") in ONE_BY_ONE for call in calls)


def _vectorized(sch: Any, loop: Any) -> Any:
    """Vectorize the innermost loop; returns the loop outside of the vector."""
    extent = int(sch.get(loop).extent)
    lanes = next((n for n in LANES if extent % n == 0), None)
    if lanes is None:
        return loop
    if extent == lanes:
        sch.vectorize(loop)
        return None
    left, vector = sch.split(loop, [None, lanes])
    sch.vectorize(vector)
    return left


def copy_function(shape: Sequence[int], dtype: str) -> Any:
    """A PrimFunc that copies a tensor: for an output that is another value under a second name."""
    source = te.placeholder((int(np.prod(shape, dtype=np.int64)),), dtype, name="source")
    target = te.compute(source.shape, lambda i: source[i], name="target")
    return scheduled(te.create_prim_func([source, target]))
