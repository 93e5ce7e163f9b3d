"""A plan of every kernel row that serves an operator for a target, and what the reference says it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from row_cases import CASES, Case

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.assembly import ConstantPool
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Constant, Input, KernelRow, Output, rows
from subbyte.tvm_kernels.machines import Target, get_target
from subbyte.tvm_kernels.memory import aligned
from subbyte.tvm_kernels.plan import Argument, KernelCall, Plan, Tensor

Array = npt.NDArray[Any]


def rows_of(target: Target, op: Any = None) -> list[KernelRow]:
    """Rows for the target's CPU; of one operator those that do not refuse it."""
    with code_generator(target.emitter.code_generator, target.multiplies):
        found = [row for row in rows(op) if row.lacks_of_cpu(target.features) is None]
        return [row for row in found if op is None or row.refuses(op) is None]


@dataclass
class PlanOfRows:
    """A plan as it grows: a call for each row of each case, on model inputs, into model outputs."""

    target: Target
    weights: ConstantPool = field(default_factory=ConstantPool)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    given: list[Array] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)
    calls: list[KernelCall] = field(default_factory=list)
    workspace: int = 0

    def add(self, case: Case) -> None:
        places = {
            name: self._tensor(f"{case.name}: {name}", array, self.inputs, self.given, "input").place
            for name, array in (*zip(OWN_INPUTS, case.own, strict=False), *case.tensors.items())
        }
        golden = operators.run(case.op, case.own, case.tensors)
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

    def _call(self, name: str, case: Case, row: KernelRow, places: dict[str, Argument], results: list[Tensor]) -> None:
        with code_generator(self.target.emitter.code_generator, self.target.multiplies):
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
        self.calls.append(
            KernelCall(
                name=name,
                kind=case.op.kind,
                kernel=str(row),
                function=built.function,
                arguments=tuple(arguments),
                outputs=tuple(results),
            )
        )

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
