"""The row of table look-ups against the reference: in LLVM and in C, alone and with every kind of epilogue."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from agreement import differing, run

from subbyte.tvm_kernels.kernels.registry import Constant, rows
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Clip,
    Codes,
    Combine,
    Epilogue,
    PRelu,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)
from subbyte.tvm_kernels.operators.lookup import Lookup

SIGNED = Codes(-128, 127, 128)
RNG = np.random.default_rng(3)
TABLE = RNG.normal(scale=4, size=256).astype(np.float32)
BY = pytest.mark.parametrize("by", ["llvm", "c"])
BOTH = (ToFloat(), ToCodes(7.0, SIGNED))


def look_up(rows: int, channels: int, *steps: object, stores: object = (ToFloat(),)) -> tuple[Lookup, list[np.ndarray]]:
    codes = RNG.integers(0, 256, (rows, channels)).astype(np.uint8)
    return Lookup("look-up", rows, channels, TABLE, Epilogue(steps, stores)), [codes]  # type: ignore[arg-type]


@BY
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (41, 1), (7, 13), (3, 8191), (2050, 65)])
def test_every_shape(by: Literal["llvm", "c"], shape: tuple[int, int]) -> None:
    assert differing(*look_up(*shape, stores=BOTH)[:1], "lookup", look_up(*shape)[1], by) == 0


def test_every_byte_has_its_entry() -> None:
    """Literally: the outputs are the table."""
    op = Lookup("look-up", 16, 16, TABLE, Epilogue())
    (got,), _ = run(op, "lookup", [np.arange(256, dtype=np.uint8)])
    np.testing.assert_array_equal(got.reshape(-1), TABLE)


@BY
@pytest.mark.parametrize(
    "steps",
    [
        (Scale(constant(0.3)), Bias(constant(-2)), Clip(-3, 5), PRelu(constant(0.1))),
        (Activate("relu"), Activate("tanh"), Activate("gelu")),  # of the table, in NumPy: no other bits either
    ],
)
def test_what_looks_at_values_alone_is_in_the_table(by: Literal["llvm", "c"], steps: tuple[object, ...]) -> None:
    """A table of bytes for codes, one of floats for floats; nothing else is read."""
    op, own = look_up(5, 11, *steps, stores=BOTH)
    assert differing(op, "lookup", own, by) == 0
    parameters = rows(op)[0].build(op).parameters
    tables = [p.values for p in parameters if isinstance(p, Constant)]
    assert [(t.dtype, t.shape) for t in tables] == [(np.float32, (256,)), (np.uint8, (256,))]


@BY
@pytest.mark.parametrize(
    "steps",
    [
        (Scale(constant(np.linspace(0.1, 2, 11))),),
        (Bias(constant(np.arange(11))),),
        (PRelu(constant(np.linspace(0, 1, 11))),),
        (RowScale("step"), Clip(-3, 5)),
        (Combine("add", "residual"),),
    ],
    ids=lambda steps: type(steps[0]).__name__,
)
def test_what_depends_on_the_place_is_computed_there(by: Literal["llvm", "c"], steps: tuple[object, ...]) -> None:
    op, own = look_up(5, 11, *steps, stores=BOTH)
    tensors = {
        step.tensor: RNG.normal(size=(5, 1 if isinstance(step, RowScale) else 11)).astype(np.float32)
        for step in steps
        if isinstance(step, RowScale | Combine)
    }
    assert op.stored() is None
    assert differing(op, "lookup", own, by, **tensors) == 0


@BY
def test_signs_of_entries(by: Literal["llvm", "c"]) -> None:
    op, own = look_up(5, 37, stores=(ToBits(constant(0.5), Bits(37)), ToFloat()))
    assert differing(op, "lookup", own, by) == 0
