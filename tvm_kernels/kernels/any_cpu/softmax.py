"""Softmax over the last axis: the maximum of the row, exp of the differences, division by their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, each_row, reduce, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.float_functions import TABLE, FloatFunctions
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.kernels.tir.vectors import lanes_of, splat
from subbyte.tvm_kernels.operators.softmax import Softmax


def build(op: Softmax, lanes: int) -> Built:
    with prim_func("softmax") as signature:
        x = signature.input(OWN_INPUTS[0], (op.rows, op.channels), "float32")
        functions = FloatFunctions(signature.constant("coefficients", TABLE))
        edges = signature.constant("edges", np.array([np.finfo(np.float32).max, np.nan], np.float32))
        y = signature.output(0, (op.rows, op.channels), "float32")
        with each_row(op.rows, 4 * op.channels) as row:
            # A NaN that the maximum ignores is in the powers, and so in their sum.
            largest = reduce(op.channels, lanes, x[row, 0], lambda c, n: x[row, at(c, n)], T.max)

            def power(c: Any, n: int) -> Any:
                """e^(x - largest), which is stored, too."""
                value = T.bind(functions.exp(x[row, at(c, n)] - splat(largest, n)))
                T.buffer_store(y, value, [row, at(c, n)])
                return value

            total = reduce(op.channels, lanes, T.float32(0), power, lambda a, b: a + b)
            # exp clamps its argument, so an infinite maximum or NaN (a fully masked row) is detected here.
            finite = tvm.tirx.And(largest <= edges[0], largest >= -edges[0])
            share = T.bind(tvm.tirx.Select(finite, T.float32(1) / total, edges[1]))

            def scale(c: Any, n: int) -> None:
                value = y[row, at(c, n)]
                T.buffer_store(y, value * splat(share, lanes_of(value)), [row, at(c, n)])

            along(op.channels, lanes, scale)
    return signature.built()


vector_rows("softmax", Softmax, build)
