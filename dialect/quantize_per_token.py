"""QuantizePerToken: 8-bit codes, with one step per vector along the last axis, computed at run time."""

from __future__ import annotations

import numpy as np

from subbyte.dialect.function import Array, Call, Exactness, Function, Quantizer, Rescale, Shape, register
from subbyte.formats import reference
from subbyte.formats.energy import ELEMENTWISE


def _reference(x: Array) -> tuple[Array, ...]:
    codes, step = reference.quantize_per_token(x)
    return np.float32(codes), step


def _shapes(call: Call) -> tuple[Shape, ...]:
    (x,) = call.shapes
    if not x:
        raise ValueError("a scalar has no last axis")
    return x, (*x[:-1], 1)


def _example(random: np.random.Generator) -> tuple[Array, ...]:
    x = random.normal(scale=10.0 ** random.integers(-7, 4), size=(2, 3, 5)).astype(np.float32)
    x[0, 0] = 0
    return (x,)


QuantizePerToken = register(
    Function(
        name="QuantizePerToken",
        version=1,
        summary="Codes in -128..127 and step of each vector along the last axis (BitNet b1.58, 2024).",
        body="""QuantizePerToken (x) => (codes, step) {
            last = Constant <value = int64[1] {-1}> ()
            floor = Constant <value = float {1e-5}> ()
            full = Constant <value = float {128}> ()
            inverse_full = Constant <value = float {0.0078125}> ()
            low = Constant <value = float {-128}> ()
            high = Constant <value = float {127}> ()
            magnitude = Abs(x)
            peak = ReduceMax <keepdims = 1> (magnitude, last)
            largest = Max(peak, floor)
            inverse_step = Div(full, largest)
            scaled = Mul(x, inverse_step)
            rounded = Round(scaled)
            codes = Clip(rounded, low, high)
            step = Mul(largest, inverse_full)
        }""",
        role=Quantizer(lambda *_: "int8 per token"),
        shapes=_shapes,
        reference=_reference,
        exactness=Exactness.BIT_EXACT,
        in_float=Rescale(ones=(1,)),
        finite=True,
        macs=lambda call: 0,
        energy=ELEMENTWISE,
        example=_example,
    )
)
