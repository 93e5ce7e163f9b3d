"""Every kernel row that a device's CPU can run, on that device: zero differing bits against the NumPy reference.

All operators of row_cases.py form one plan, each by every row that the target has and that does not refuse it; the
plan is compiled and run once. What adds up float32 in its own order stands in a second plan and meets the
tolerance of bundles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from emulators import RUN, Outcome
from plan_of_rows import PlanOfRows, plan_of_rows, rows_of
from row_cases import CASES, Case

from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.machines import Target, get_target

pytestmark = pytest.mark.device

Array = npt.NDArray[Any]
REFUSED_BY = {  # code generator -> a row that it refuses for every operator, and the reason
    "llvm": ("bit-slice for Product[Bits, LowBitTensor]", "for C sources only"),
    "c": ("batch-matmul-codes-portable for Product[Codes, Codes]", "C sources, whose CPU may have no FPU"),
}
REFUSED_ALWAYS = {
    (name, row): reason for name in RUN for row, reason in [REFUSED_BY[get_target(name).emitter.code_generator]]
}


def outcome(made: PlanOfRows, golden: list[Array], folder: Path, tolerance: tuple[float, float]) -> Outcome:
    emitted = compile_plan(made.plan(), made.target, Golden(tuple(made.given), tuple(golden), *tolerance))
    return RUN[made.target.name](emitted.members, golden, folder)


def named(made: PlanOfRows, differing: list[int]) -> dict[str, str]:
    """What is not zero: how many elements of which output, of which row on which operator."""
    return {t.name: f"{n} of {int(np.prod(t.shape))}" for t, n in zip(made.outputs, differing, strict=True) if n}


@pytest.mark.parametrize("target", RUN)
def test_no_bit_differs(target: str, tmp_path: Path) -> None:
    made = plan_of_rows(target, exact=True)
    ok, differing = outcome(made, made.wanted, tmp_path, (0.0, 0.0))
    assert named(made, differing) == {}
    assert ok


@pytest.mark.parametrize("target", RUN)
def test_floats_are_within_the_tolerance_of_bundles(target: str, tmp_path: Path) -> None:
    made = plan_of_rows(target, exact=False)
    ok, differing = outcome(made, made.wanted, tmp_path, (RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE))
    assert ok, f"one or more of these (elements with other bits): {named(made, differing)}"


@pytest.mark.parametrize("target", RUN)
def test_every_row_of_the_target_is_run(target: str) -> None:
    """A new row needs a case in row_cases.py that it serves, or its reason in REFUSED_ALWAYS."""
    machine = get_target(target)
    refused = {name for where, name in REFUSED_ALWAYS if where == target}
    calls = [*plan_of_rows(target, exact=True).calls, *plan_of_rows(target, exact=False).calls]
    assert {call.kernel for call in calls} == {str(row) for row in rows_of(machine)} - refused
    for case in CASES:
        chosen = _chosen(machine, case)
        assert any(call.name == f"{chosen} on '{case.name}'" for call in calls)


def _chosen(machine: Target, case: Case) -> str:
    with code_generator(machine.emitter.code_generator, machine.multiplies):
        return choose(case.op, machine.features).kernel.name


@pytest.mark.parametrize(("place", "reason"), REFUSED_ALWAYS.items(), ids=str)
def test_rows_left_out_refuse_every_operator(place: tuple[str, str], reason: str) -> None:
    target, name = place
    row = next(r for r in rows_of(get_target(target)) if str(r) == name)
    with code_generator(get_target(target).emitter.code_generator, get_target(target).multiplies):
        reasons = {row.refuses(case.op) for case in CASES if row.matches(case.op)}
    assert None not in reasons
    assert reason in reasons


@pytest.mark.parametrize("target", RUN)
def test_one_wrong_bit_is_found_and_named(target: str, tmp_path: Path) -> None:
    """One golden bit of the last output is turned."""
    made = PlanOfRows(get_target(target))
    for case in CASES[:2]:
        made.add(case)
    golden = [array.copy() for array in made.wanted]
    golden[-1].reshape(-1).view(np.uint8)[0] ^= 1
    ok, differing = outcome(made, golden, tmp_path, (0.0, 0.0))
    assert not ok
    assert list(named(made, differing)) == [made.outputs[-1].name]
