"""Per-token quantization: the step of a row is from its largest magnitude. Equals formats.reference bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.tvm_kernels.kernels.any_cpu.rowwise import along, at, each_row, reduce, vector_rows
from subbyte.tvm_kernels.kernels.registry import OWN_INPUTS, Built
from subbyte.tvm_kernels.kernels.tir.float_functions import number
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.kernels.tir.vectors import reinterpret, splat, vector_type
from subbyte.tvm_kernels.operators.quantize_tokens import QuantizeTokens


def build(op: QuantizeTokens, lanes: int) -> Built:
    with prim_func("quantize_tokens") as signature:
        x = signature.input(OWN_INPUTS[0], (op.rows, op.channels), "float32")
        smallest = signature.constant("smallest", np.array([1e-5], np.float32))
        codes = signature.output(0, (op.rows, op.channels), "uint8")
        steps = signature.output(1, (op.rows,), "float32")
        with each_row(op.rows, op.channels) as row:

            def magnitude(c: Any, n: int) -> Any:
                """|x| as an integer in the same order, with NaN the largest."""
                bits = reinterpret(vector_type("int32", n), x[row, at(c, n)])
                return bits & splat(IntImm("int32", 0x7FFFFFFF), n)

            largest = reinterpret(
                "float32", reduce(op.channels, lanes, reinterpret("int32", smallest[0]), magnitude, T.max)
            )
            largest = T.bind(largest)
            T.buffer_store(steps, largest * T.float32(0.0078125), [row])
            inverse = T.bind(T.float32(128) / largest)

            def quantize(c: Any, n: int) -> None:
                code = T.nearbyint(x[row, at(c, n)] * splat(inverse, n))
                code = T.min(T.max(code, number(-128, code)), number(127, code)) + number(128, code)
                integer = T.Cast(vector_type("int32", n), code)
                T.buffer_store(codes, T.Cast(vector_type("uint8", n), integer), [row, at(c, n)])

            along(op.channels, lanes, quantize)
    return signature.built()


vector_rows("quantize-tokens", QuantizeTokens, build)
