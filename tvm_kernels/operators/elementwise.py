"""An epilogue on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from subbyte.tvm_kernels.operators.activations import FUNCTIONS
from subbyte.tvm_kernels.operators.epilogue import Activate, Epilogue, ToCodes
from subbyte.tvm_kernels.operators.operands import Array, Codes, Tensors
from subbyte.tvm_kernels.operators.operator import Example, Fused


@dataclass(frozen=True, eq=False)
class Elementwise(Fused):
    """An epilogue on its own: float32 [rows, channels] in, its stores out; for instance Quantize or Binarize."""

    rows: int
    channels: int
    epilogue: Epilogue
    inputs = 1
    macs = 0

    def resized(self, rows: int, channels: int) -> Elementwise:
        return replace(self, rows=rows, channels=channels)

    def reference(self, inputs: Sequence[Array], tensors: Tensors) -> list[Array]:
        return self.epilogue.reference(inputs[0].reshape(self.rows, self.channels), tensors)

    @classmethod
    def examples(cls, random: np.random.Generator) -> Sequence[Example]:
        """Every function, and codes of every kind of zero point of numbers that no integer holds."""
        x = random.normal(0, 3, (3, 21)).astype(np.float32)
        made = [
            Example(cls(function, 3, 21, Epilogue((Activate(function),))), (x,), exact=function == "relu")
            for function in FUNCTIONS
        ]
        large = np.array([2.0**22, 2.0**23, 2.0**31 - 128, 2.0**31, 2.0**32, 1e20, 3e38, np.inf, np.nan], np.float32)
        beyond = np.concatenate([large, -large, np.array([0.5, 1.5, -2.5], np.float32)]).reshape(1, -1)
        ranges = (Codes(-128, 127, 128), Codes(0, 255), Codes(-37, 218, 37), Codes(-1, 6, 1))
        stores = [ToCodes(factor, codes, divide) for codes in ranges for factor, divide in ((1.0, False), (0.25, True))]
        out_of_range = cls("elementwise, out of range", 1, beyond.size, Epilogue((), tuple(stores)))
        return [*made, Example(out_of_range, (beyond,))]
