"""Binarize: one bit per value, by a threshold."""

from __future__ import annotations

import numpy as np

from subbyte.dialect.function import Array, Exactness, Function, Quantizer, Rescale, register
from subbyte.formats import reference
from subbyte.formats.energy import ELEMENTWISE


def _example(random: np.random.Generator) -> tuple[Array, ...]:
    x = np.concatenate([[0.0, -0.0, 1e-30, -1e-30], random.normal(size=20)]).astype(np.float32).reshape(2, 3, 4)
    threshold = random.choice(np.array([0, 0.25], np.float32), size=(1, 3, 1))
    x[1, :, 0] = threshold[0, :, 0]
    return x, threshold


Binarize = register(
    Function(
        name="Binarize",
        version=1,
        summary="+1 where x >= threshold, else -1; the sign of 0 is +1.",
        body="""Binarize (x, threshold) => (signs) {
            plus = Constant <value = float {1}> ()
            minus = Constant <value = float {-1}> ()
            high = GreaterOrEqual(x, threshold)
            signs = Where(high, plus, minus)
        }""",
        role=Quantizer(lambda *_: "binary"),
        shapes=lambda call: (np.broadcast_shapes(*call.shapes),),
        reference=lambda x, threshold: (np.float32(reference.binarize(x, threshold)),),
        exactness=Exactness.BIT_EXACT,
        in_float=Rescale(),
        finite=False,
        macs=lambda call: 0,
        energy=ELEMENTWISE,
        example=_example,
    )
)
