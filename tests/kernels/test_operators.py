"""The registers of operators, steps and stores: complete entries alone, each with a kernel row for every CPU."""

from __future__ import annotations

from dataclasses import is_dataclass

import numpy as np
import pytest

from subbyte.errors import CompileError, RegistrationError
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.kernels.registry import kernel, rows
from subbyte.tvm_kernels.kernels.tir import epilogue as emitted
from subbyte.tvm_kernels.operators.epilogue import STEPS, STORES
from subbyte.tvm_kernels.operators.operator import PARTS
from subbyte.tvm_kernels.operators.softmax import Softmax

EVERY = ops.operators()


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.__name__)
def test_every_operator_is_complete_and_served(operator: type[ops.Operator]) -> None:
    assert is_dataclass(operator)
    assert not [part for part in PARTS if getattr(getattr(operator, part), "__isabstractmethod__", False)]
    assert any(not row.needs for row in rows(operator))


def test_every_exported_operator_is_registered() -> None:
    """One that nothing but its own rule and its kernels speaks of is exported nowhere."""
    exported = {value for value in vars(ops).values() if isinstance(value, type) and issubclass(value, ops.Operator)}
    assert exported - {ops.Operator, ops.Fused} <= set(EVERY)


@pytest.mark.parametrize("part", PARTS)
def test_an_operator_that_lacks_a_part_is_refused(part: str) -> None:
    parts = {"inputs": 1, "macs": 0, "per_element": {}, "reference": lambda self, inputs, tensors: list(inputs)}
    del parts[part]
    with pytest.raises(RegistrationError, match=f"operator Partial has no {part}"):
        type("Partial", (ops.Operator,), parts)
    assert ops.operators() == EVERY


def test_a_name_that_is_taken_is_refused() -> None:
    parts = {"inputs": 1, "macs": 0, "per_element": {}, "reference": lambda self, inputs, tensors: list(inputs)}
    with pytest.raises(RegistrationError, match="Softmax is registered twice"):
        type("Softmax", (ops.Operator,), parts)


@pytest.mark.parametrize(("base", "part"), [(ops.Step, "apply"), (ops.Store, "apply")])
def test_a_step_or_store_without_reference_is_refused(base: type, part: str) -> None:
    with pytest.raises(RegistrationError, match=f"Empty has no {part}"):
        type("Empty", (base,), {})


def test_kernels_can_emit_every_step_and_store() -> None:
    assert set(STEPS) == set(emitted._STEPS)
    assert set(STORES) == set(emitted._STORES)


@pytest.mark.parametrize(("name", "words"), [("", "has no name"), ("check-indices", "'check-indices' for .* twice")])
def test_an_incomplete_kernel_row_is_refused(name: str, words: str) -> None:
    before = rows()
    with pytest.raises(RegistrationError, match=words):
        kernel(name, serves=ops.CheckIndices)(lambda op: None)  # type: ignore[arg-type, return-value]
    assert rows() == before


def test_a_kernel_row_of_no_operator_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"kernel row 'steps' serves .*Epilogue.* is no operator"):
        kernel("steps", serves=ops.Epilogue)  # type: ignore[type-var]


def test_a_missing_input_is_named() -> None:
    op = Softmax("attention", 1, 4)
    with pytest.raises(CompileError, match="'attention' takes 1 tensors of its own, got 2"):
        ops.run(op, [np.zeros(4, np.float32)] * 2)
