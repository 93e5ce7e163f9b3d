"""Quantize: codes, with one step per tensor."""

from __future__ import annotations

import numpy as np

from subbyte.dialect.function import Array, Exactness, Function, Quantizer, Rescale, register
from subbyte.formats import integer, reference
from subbyte.formats.energy import ELEMENTWISE


def codes(x: Array | None, inverse_step: Array | None, low: Array | None, high: Array | None) -> str:
    """The smallest integer format that contains low..high; "codes" if a limit is not a constant, or not finite."""
    if low is None or high is None or not np.isfinite([low, high]).all():
        return "codes"
    fmt = integer.narrowest(float(low), float(high), signed=bool(low < 0))
    return f"{int(low)}..{int(high)}" if fmt is None else fmt.name


def _example(random: np.random.Generator) -> tuple[Array, ...]:
    step, low = np.float32(random.uniform(0.01, 10)), int(random.choice([-128, 0, -8]))
    ties = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.0, -0.0, 1e9, -1e9, 126.5, 127.5], np.float32)
    x = np.concatenate([ties * step, random.normal(size=13).astype(np.float32)]).reshape(2, 3, 4)
    return x, np.float32(1) / step, np.float32(low), np.float32(low + 255 if low != -8 else 7)


Quantize = register(
    Function(
        name="Quantize",
        version=1,
        summary="Integer-valued codes: clip(rint(x * inverse_step), low, high); ties to even.",
        body="""Quantize (x, inverse_step, low, high) => (codes) {
            scaled = Mul(x, inverse_step)
            rounded = Round(scaled)
            codes = Clip(rounded, low, high)
        }""",
        role=Quantizer(codes),
        shapes=lambda call: (np.broadcast_shapes(*call.shapes[:2]),),
        reference=lambda x, inverse, low, high: (np.float32(reference.quantize(x, inverse, low, high)),),
        exactness=Exactness.BIT_EXACT,
        in_float=Rescale(factor=1),
        finite=True,
        macs=lambda call: 0,
        energy=ELEMENTWISE,
        example=_example,
    )
)
