"""Lookup: any elementwise function of codes, as a table with one entry per code."""

from __future__ import annotations

import numpy as np

from subbyte.dialect.function import Array, Body, Call, Exactness, Function, Shape, Values, register


def _reference(codes: Array, table: Array, low: Array) -> tuple[Array, ...]:
    index = np.clip(np.rint(codes - low), 0, table.size - 1)
    return (table[index.astype(np.int64)],)


def _shapes(call: Call) -> tuple[Shape, ...]:
    codes, table, low = call.shapes
    return ((*np.broadcast_shapes(codes, low), *table[1:]),)


def _example(random: np.random.Generator) -> tuple[Array, ...]:
    low = np.float32(random.choice([-128, 0]))
    codes = (low + random.integers(0, 256, (2, 3, 4))).astype(np.float32)
    codes[0, 0] = [low - 9, low, low + 255, low + 1000]  # clipped to the first or last entry
    return codes, random.normal(size=256).astype(np.float32), low


Lookup = register(
    Function(
        name="Lookup",
        version=1,
        summary="The entry of a table for each code: table[code - low]; beyond the table its first or last entry.",
        body="""Lookup (codes, table, low) => (values) {
            first = Constant <value = float {0}> ()
            one = Constant <value = int64 {1}> ()
            entries = Size(table)
            end = Sub(entries, one)
            last = Cast <to = 1> (end)
            numbers = Cast <to = 1> (codes)
            places = Sub(numbers, low)
            nearest = Round(places)
            inside = Clip(nearest, first, last)
            index = Cast <to = 7> (inside)
            values = Gather <axis = 0> (table, index)
        }""",
        role=Values(integers=False),
        shapes=_shapes,
        reference=_reference,
        exactness=Exactness.BIT_EXACT,
        in_float=Body(),
        finite=False,
        macs=lambda call: 0,
        energy={"8 KB table read": 1},
        example=_example,
    )
)
