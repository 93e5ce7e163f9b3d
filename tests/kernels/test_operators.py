"""The registers of operators, steps and stores: complete entries alone, each with a kernel row for every CPU."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pytest
from agreement import differing, run

from subbyte.errors import CompileError, RegistrationError
from subbyte.formats.energy import wrong_operations
from subbyte.runtime.features import FEATURES
from subbyte.runtime.golden import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from subbyte.tvm_kernels import operators as ops
from subbyte.tvm_kernels.kernels.registry import KernelRow, kernel, rows
from subbyte.tvm_kernels.kernels.tir import epilogue as emitted
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators.check_indices import CheckIndices
from subbyte.tvm_kernels.operators.epilogue import STEPS, STORES
from subbyte.tvm_kernels.operators.operator import PARTS
from subbyte.tvm_kernels.operators.softmax import Softmax

EVERY = ops.operators()
WHOLE: dict[str, object] = {
    "inputs": 1,
    "macs": 0,
    "per_element": {},
    "reference": lambda self, inputs, tensors: list(inputs),
    "examples": classmethod(lambda cls, random: []),
}


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.__name__)
def test_every_operator_is_complete_and_served(operator: type[ops.Operator]) -> None:
    assert is_dataclass(operator)
    assert not [part for part in PARTS if getattr(getattr(operator, part), "__isabstractmethod__", False)]
    assert any(not row.needs for row in rows(operator))


@pytest.mark.parametrize("operator", EVERY, ids=lambda operator: operator.__name__)
def test_every_row_here_computes_the_examples(operator: type[ops.Operator]) -> None:
    """And the reference gives their outputs, and what they count has a price."""
    examples = operator.examples(np.random.default_rng(3))
    assert examples
    assert len({example.operator.name for example in examples}) == len(examples)
    for example in examples:
        op = example.operator
        assert type(op) is operator
        assert wrong_operations(op.per_element) is None
        assert (op.facts().per_mac is None) == (op.macs == 0)
        served = [row for row in rows(op) if row.needs <= host_features() and row.refuses(op) is None]
        assert served
        for row in served if example.exact else ():
            assert differing(op, row.name, example.inputs, **example.tensors) == 0
        for row in () if example.exact else served:
            for got, wanted in zip(*run(op, row.name, example.inputs, example.tensors), strict=True):
                np.testing.assert_allclose(got, wanted, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)


def test_every_exported_operator_is_registered() -> None:
    """One that nothing but its own rule and its kernels speaks of is exported nowhere."""
    exported = {value for value in vars(ops).values() if isinstance(value, type) and issubclass(value, ops.Operator)}
    assert exported - {ops.Operator, ops.Fused} <= set(EVERY)


@pytest.mark.parametrize("part", PARTS)
def test_an_operator_that_lacks_a_part_is_refused(part: str) -> None:
    with pytest.raises(RegistrationError, match=f"operator Partial has no {part}"):
        type("Partial", (ops.Operator,), {name: given for name, given in WHOLE.items() if name != part})
    assert ops.operators() == EVERY


@pytest.mark.parametrize(
    ("part", "got", "words"),
    [
        ("inputs", 0, "its 'inputs' is 0, expected a number of tensors, at least 1"),
        ("macs", -1, "its 'macs' is -1, expected a number, at least 0"),
        ("macs", True, "its 'macs' is True, expected a number"),
        ("per_element", {"frob": 1}, "its 'per_element' is 1 of operation 'frob': expected a positive number of int8"),
        ("per_element", {"int32 add": 0}, "its 'per_element' is 0 of operation 'int32 add'"),
        ("per_element", 2, "its 'per_element' is 2: expected a mapping of operations to counts"),
        ("reference", [], r"its 'reference' is \[\], expected a method"),
        ("examples", (), r"its 'examples' is \(\), expected a class method"),
    ],
)
def test_a_wrong_part_of_an_operator_is_refused(part: str, got: object, words: str) -> None:
    with pytest.raises(RegistrationError, match=f"operator Partial: {words}"):
        type("Partial", (ops.Operator,), {**WHOLE, part: got})
    assert ops.operators() == EVERY


@pytest.mark.parametrize("macs", [1000, property(lambda self: 1000)], ids=["constant", "property"])
def test_an_operator_that_multiplies_without_facts_is_refused(macs: object) -> None:
    """Else its products would be reported without weights, and counted as float32."""
    with pytest.raises(RegistrationError, match="operator Partial has no facts, but its 'macs' is not 0"):
        type("Partial", (ops.Operator,), {**WHOLE, "macs": macs})
    assert ops.operators() == EVERY


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(RegistrationError, match="Softmax is registered twice"):
        type("Softmax", (ops.Operator,), WHOLE)


@pytest.mark.parametrize(("base", "part"), [(ops.Step, "apply"), (ops.Store, "apply")])
def test_a_step_or_store_without_reference_is_refused(base: type, part: str) -> None:
    with pytest.raises(RegistrationError, match=f"Empty has no {part}"):
        type("Empty", (base,), {})


def test_kernels_can_emit_every_step_and_store() -> None:
    assert set(STEPS) == set(emitted._STEPS)
    assert set(STORES) == set(emitted._STORES)


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "has no name"), (5, "has no name, got 5"), ("check-indices", "'check-indices' for .* twice")],
)
def test_an_incomplete_kernel_row_is_refused(name: Any, words: str) -> None:
    before = rows()
    with pytest.raises(RegistrationError, match=words):
        kernel(name, serves=CheckIndices)(lambda op: None)  # type: ignore[arg-type, return-value]
    assert rows() == before


def test_a_kernel_row_of_no_operator_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"kernel row 'steps' serves .*Epilogue.* is not an operator"):
        kernel("steps", serves=ops.Epilogue)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"needs": {"avx2", "avx3"}}, "needs the CPU feature 'avx3', which no target can have, expected some of ssse3"),
        ({"prefer": "most"}, "its 'prefer' is 'most', expected an integer"),
        ({"serves": ops.Product}, "serves Product with 0 types of operands, expected 2"),  # it would serve them all
        ({"refuses": "never"}, "its 'refuses' is 'never', expected a function"),
        ({"serves": ops.Product[int, ops.Float]}, "an operand of its 'serves' is .*int.*, expected Float, Codes, Bits"),
        (
            {"serves": ops.Product[ops.Codes, ops.Binarized]},
            "an operand of its .serves. is .*Binarized",
        ),
    ],
)
def test_a_wrong_part_of_a_kernel_row_is_refused(given: dict[str, Any], words: str) -> None:
    before = rows()
    with pytest.raises(RegistrationError, match=f"kernel row 'frob'.* {words}"):
        kernel("frob", **{"serves": CheckIndices, **given})(lambda op: None)  # type: ignore[arg-type, return-value]
    assert rows() == before


@pytest.mark.parametrize("row", rows(), ids=str)
def test_every_kernel_row_is_whole(row: KernelRow) -> None:
    """Its operator is registered, and a CPU of some target has the features."""
    assert row.pattern[0] in EVERY
    assert row.needs <= FEATURES.keys()


def test_a_missing_input_is_named() -> None:
    op = Softmax("attention", 1, 4)
    with pytest.raises(CompileError, match="'attention' takes 1 tensors of its own, got 2"):
        ops.run(op, [np.zeros(4, np.float32)] * 2)
