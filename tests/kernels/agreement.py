"""Run any operator by a row, through LLVM or as C, and say how far it is from the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from c_kernel import run_c

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.kernels.code_generator import Generator, code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, KernelRow, rows
from subbyte.tvm_kernels.kernels.tir import execute
from subbyte.tvm_kernels.machines.host import host_features

Array = npt.NDArray[Any]


def rows_for(serves: Any) -> list[KernelRow]:
    """The rows of an operator's class, or of a product of those operands."""
    return [r for r in rows() if serves in (r.serves, r.pattern[0])]


def row(serves: Any, name: str) -> KernelRow:
    """The kernel row of that name."""
    return next(r for r in rows_for(serves) if r.name == name)


def rows_here(serves: Any, prefix: str = "") -> list[str]:
    """Names of the rows (with that prefix) that this CPU can run."""
    return [r.name for r in rows_for(serves) if r.needs <= host_features() and r.name.startswith(prefix)]


def run(
    op: Any, name: str, own: Sequence[Array], tensors: Mapping[str, Array] | None = None, by: Generator = "llvm"
) -> tuple[list[Array], list[Array]]:
    """Outputs of the row and of the reference, shaped alike; through LLVM with only the features the row needs."""
    kernel = next(r for r in rows(op) if r.name == name)
    with code_generator(by):
        assert kernel.refuses(op) is None
    inputs = {**dict(zip(OWN_INPUTS, own, strict=False)), **(tensors or {})}
    if by == "c":
        with tempfile.TemporaryDirectory() as folder:
            got = run_c(op, kernel, inputs, Path(folder))
    else:
        got = execute.run(op, inputs, kernel, kernel.needs & host_features())
    wanted = operators.run(op, own, tensors)
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype
        assert g.size == w.size
    return [g.reshape(w.shape) for g, w in zip(got, wanted, strict=True)], wanted


def differing(op: Any, name: str, own: Sequence[Array], by: Generator = "llvm", **tensors: Array) -> int:
    """How many elements of all outputs differ from the reference, in any bit."""
    got, wanted = run(op, name, own, tensors, by)
    return sum(int((g.view(np.uint8) != w.view(np.uint8)).sum()) for g, w in zip(got, wanted, strict=True))


def error(op: Any, name: str, own: Sequence[Array], by: Generator = "llvm", **tensors: Array) -> float:
    """The largest error of a float output, relative to the largest value of the reference."""
    got, wanted = run(op, name, own, tensors, by)
    errors = []
    for g, w in zip(got, wanted, strict=True):
        assert w.dtype == np.float32
        assert np.isfinite(g).all()
        errors.append(float(np.abs(g.astype(np.float64) - w).max() / max(float(np.abs(w).max()), 1e-30)))
    return max(errors)
