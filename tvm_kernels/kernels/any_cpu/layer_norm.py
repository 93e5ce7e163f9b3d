"""Layer normalization over the last axis, then the epilogue. Ba et al., "Layer Normalization", 2016.

The variance is the mean of squared differences, not the difference of means, which would cancel. The mean is rounded,
which matters in a nearly constant row: so the mean of the differences is subtracted from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, each_row, reduce, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.kernels.tir.vectors import splat
from subbyte.tvm_kernels.operators.layer_norm import LayerNorm


def build(op: LayerNorm, lanes: int) -> Built:
    with prim_func("layer_norm") as signature:
        x = signature.input(OWN_INPUTS[0], (op.rows, op.channels), "float32")
        gamma = signature.constant("gamma", op.gamma.astype(np.float32).reshape(op.channels))
        beta = signature.constant("beta", op.beta.astype(np.float32).reshape(op.channels))
        numbers = signature.constant("numbers", np.array([1 / op.channels, op.epsilon], np.float32))
        epilogue = EpilogueEmitter(op.epilogue, op.rows, op.channels, signature)
        with each_row(op.rows, 4 * op.channels) as row:

            def add(a: Any, b: Any) -> Any:
                return a + b

            total = reduce(op.channels, lanes, T.float32(0), lambda c, n: x[row, at(c, n)], add)
            mean = T.bind(total * numbers[0])
            left = reduce(op.channels, lanes, T.float32(0), lambda c, n: x[row, at(c, n)] - splat(mean, n), add)
            rest = T.bind(left * numbers[0])

            def centred(c: Any, n: int) -> Any:
                return T.bind(x[row, at(c, n)] - splat(mean, n) - splat(rest, n))

            def square(c: Any, n: int) -> Any:
                difference = centred(c, n)
                return difference * difference

            squares = reduce(op.channels, lanes, T.float32(0), square, add)
            inverse = T.bind(T.float32(1) / T.sqrt(squares * numbers[0] + numbers[1]))

            def normalize(c: Any, n: int) -> None:
                scaled = centred(c, n) * splat(inverse, n) * gamma[at(c, n)]
                epilogue.emit(scaled + beta[at(c, n)], row, c)

            along(op.channels, lanes, normalize)
    return signature.built()


vector_rows("layer-norm", LayerNorm, build)
