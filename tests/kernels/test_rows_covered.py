"""Which rows the kernel tests of this machine leave out: each by name, with the CPU features that are missing."""

from __future__ import annotations

import pytest
from agreement import rows_here
from products import runs_here
from this_cpu import skip_unless_it_has

from subbyte.tvm_kernels.kernels.registry import KernelRow, rows
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators import Product


@pytest.mark.parametrize("row", rows(), ids=str)
def test_a_row_runs_here_or_says_what_it_lacks(row: KernelRow) -> None:
    here = row.name in rows_here(row.serves)
    assert here == (row.needs <= host_features())
    if row.pattern[0] is Product:
        assert runs_here(row.name) == here
    skip_unless_it_has(row.needs)
