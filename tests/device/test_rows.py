"""Every kernel row that a device's CPU can run, on that device: zero differing bits against the NumPy reference.

All operators of row_cases.py form one plan, each by every row that the target has and that does not refuse it; the
plan is compiled and run once. What adds up float32 in its own order stands in a second plan and meets the
tolerance of bundles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from emulators import RUN, Outcome
from row_cases import CASES, Case

from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels.assembly import Weights
from subbyte.tvm_kernels.emit import Golden, compile_plan
from subbyte.tvm_kernels.kernels import reference
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Constant, Input, Kernel, Output, choose, rows
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.plan import Argument, Call, Plan, Tensor
from subbyte.tvm_kernels.targets import Target, get_target

pytestmark = pytest.mark.device

Array = npt.NDArray[Any]
REFUSED_ALWAYS = {
    (target, "QuantizedProduct", "bit-slice"): "for C sources only" for target in ("x86-64-v3", "cortex-a53")
}


def identity(row: Kernel) -> tuple[str, str]:
    return row.serves.__name__, row.name


def rows_of(target: Target, op: Any = None) -> list[Kernel]:
    """Rows whose features the target has; of one operator those that do not refuse it."""
    found = [row for row in rows(type(op) if op is not None else None) if row.needs <= target.features]
    with code_generator(target.code_generator):
        return [row for row in found if op is None or row.refuses(op) is None]


@dataclass
class PlanOfRows:
    """A plan as it grows: a call for each row of each case, on model inputs, into model outputs."""

    target: Target
    weights: Weights = field(default_factory=Weights)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    given: list[Array] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    workspace: int = 0

    def add(self, case: Case) -> None:
        places = {
            name: self._tensor(f"{case.name}: {name}", array, self.inputs, self.given, "input").place
            for name, array in (*zip(OWN_INPUTS, case.own, strict=False), *case.tensors.items())
        }
        golden = reference.run(case.op, case.own, case.tensors)
        for row in rows_of(self.target, case.op):
            name = f"{row.name} on '{case.name}'"
            results = [
                self._tensor(f"{name}, output {index}", array, self.outputs, self.wanted, "output")
                for index, array in enumerate(golden)
            ]
            self._call(name, case, row, places, results)

    def _tensor(self, name: str, array: Array, to: list[Tensor], arrays: list[Array], space: Any) -> Tensor:
        """Words of bits are int32 here: models take and give no uint32."""
        plain = np.ascontiguousarray(array.view(np.int32) if array.dtype == np.uint32 else array)
        place = Argument(space, len(to))
        tensor = Tensor(name, str(plain.dtype), plain.shape, place=place, nbytes=plain.nbytes)
        to.append(tensor)
        arrays.append(plain)
        return tensor

    def _call(self, name: str, case: Case, row: Kernel, places: dict[str, Argument], results: list[Tensor]) -> None:
        with code_generator(self.target.code_generator):
            built = row.build(case.op)
        arguments: list[Argument] = []
        scratch = 0
        for parameter in built.parameters:
            if isinstance(parameter, Input):
                arguments.append(places[parameter.tensor])
            elif isinstance(parameter, Output):
                arguments.append(results[parameter.index].place)
            elif isinstance(parameter, Constant):
                arguments.append(Argument("weights", self.weights.add(parameter.values)))
            else:
                arguments.append(Argument("workspace", scratch))
                scratch += aligned(parameter.nbytes)
        self.workspace = max(self.workspace, scratch)
        kind = type(case.op).__name__
        self.calls.append(Call(name, kind, row.name, built.function, tuple(arguments), tuple(results)))

    def plan(self) -> Plan:
        return Plan(
            name="rows",
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            calls=tuple(self.calls),
            weights=b"".join(self.weights.parts),
            workspace_bytes=self.workspace,
        )


@cache
def plan_of_rows(target: str, exact: bool) -> PlanOfRows:
    made = PlanOfRows(get_target(target))
    for case in CASES:
        if case.exact == exact:
            made.add(case)
    return made


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
    refused = {(kind, name) for where, kind, name in REFUSED_ALWAYS if where == target}
    calls = [*plan_of_rows(target, exact=True).calls, *plan_of_rows(target, exact=False).calls]
    run = {(call.kind, call.kernel) for call in calls}
    assert run == {identity(row) for row in rows_of(machine)} - refused
    for case in CASES:
        chosen = _chosen(machine, case)
        assert any(call.name == f"{chosen} on '{case.name}'" for call in calls)


def _chosen(machine: Target, case: Case) -> str:
    with code_generator(machine.code_generator):
        return choose(case.op, machine.features).kernel.name


@pytest.mark.parametrize(("place", "reason"), REFUSED_ALWAYS.items(), ids=str)
def test_rows_left_out_refuse_every_operator(place: tuple[str, str, str], reason: str) -> None:
    target, kind, name = place
    row = next(r for r in rows_of(get_target(target)) if identity(r) == (kind, name))
    with code_generator(get_target(target).code_generator):
        reasons = {row.refuses(case.op) for case in CASES if type(case.op).__name__ == kind}
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
