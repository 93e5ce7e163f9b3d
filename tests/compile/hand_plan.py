"""A plan made by hand: three kernels, as lowering would write it, with what NumPy says of its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from subbyte.tvm_kernels.plan import Argument, KernelCall, Plan, Tensor

ROWS, DEPTH, COLUMNS = 7, 24, 10


def matmul(rows: int, depth: int, columns: int, name: str = "matmul") -> Any:
    """int32 sums of uint8 codes (zero point 128) with int8 weights [columns, depth]; a tile is a row."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        a = T.arg("a", T.buffer((rows, depth), "uint8"))
        w = T.arg("w", T.buffer((columns, depth), "int8"))
        out = T.arg("out", T.buffer((rows, columns), "int32"))
        with T.parallel(0, rows) as row, T.serial(0, columns) as column:
            total = T.alloc_buffer((1,), "int32")
            T.buffer_store(total, T.int32(0), [0])
            with T.serial(0, depth) as k:
                level = T.Cast("int32", a[row, k]) - T.int32(128)
                T.buffer_store(total, total[0] + level * T.Cast("int32", w[column, k]), [0])
            T.buffer_store(out, total[0], [row, column])
    return builder.get()


def scale(rows: int, columns: int) -> Any:
    """float32 sums times a scale for each column, in two loops, so that it is one tile; scratch of the whole tensor."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("scale")
        x = T.arg("x", T.buffer((rows, columns), "int32"))
        s = T.arg("s", T.buffer((columns,), "float32"))
        y = T.arg("y", T.buffer((rows, columns), "float32"))
        scratch = T.alloc_buffer((rows, columns * 64), "float32")
        with T.parallel(0, rows) as row, T.serial(0, columns) as column:
            T.buffer_store(scratch, T.Cast("float32", x[row, column]), [row, column * 64])
        with T.parallel(0, rows) as row, T.vectorized(0, columns) as column:
            T.buffer_store(y, scratch[row, column * 64] * s[column], [row, column])
    return builder.get()


def call(name: str, function: Any, arguments: tuple[Argument, ...], *outputs: Tensor) -> KernelCall:
    """A call by the name of its node and of its kernel, with a blank between."""
    node, kernel = name.split()
    kind = "QuantizedProduct" if kernel == "dot" else "Elementwise"
    return KernelCall(name=node, kind=kind, kernel=kernel, function=function, arguments=arguments, outputs=outputs)


class Example:
    """A plan with inputs and the outputs it must give, bit for bit."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.codes: npt.NDArray[Any] = rng.integers(0, 256, (ROWS, DEPTH)).astype(np.uint8)
        first = rng.integers(-8, 8, (COLUMNS, DEPTH)).astype(np.int8)
        second = rng.integers(-8, 8, (COLUMNS, DEPTH)).astype(np.int8)
        scales = rng.uniform(0.01, 1, COLUMNS).astype(np.float32)
        self.sums = (self.codes.astype(np.int32) - 128) @ first.astype(np.int32).T
        other = (self.codes.astype(np.int32) - 128) @ second.astype(np.int32).T
        self.scaled = other.astype(np.float32) * scales
        self.inputs = (self.codes,)
        self.outputs = (self.scaled, self.sums)
        weights = bytearray(1024)
        weights[0 : first.nbytes] = first.tobytes()
        weights[256 : 256 + second.nbytes] = second.tobytes()
        weights[512 : 512 + scales.nbytes] = scales.tobytes()
        hidden = Tensor("hidden", "int32", (ROWS, COLUMNS), place=Argument("arena", 64), nbytes=ROWS * COLUMNS * 4)
        sums = Tensor("sums", "int32", (ROWS, COLUMNS), place=Argument("output", 1), nbytes=ROWS * COLUMNS * 4)
        scaled = Tensor("scaled", "float32", (ROWS, COLUMNS), place=Argument("output", 0), nbytes=ROWS * COLUMNS * 4)
        codes = Tensor("codes", "uint8", (ROWS, DEPTH), place=Argument("input", 0), nbytes=ROWS * DEPTH)
        a, h = Argument("input", 0), Argument("arena", 64)
        product = matmul(ROWS, DEPTH, COLUMNS)
        again = matmul(ROWS, DEPTH, COLUMNS, "another_name")
        self.plan = Plan(
            name='hand "made"',
            inputs=(codes,),
            outputs=(scaled, sums),
            calls=(
                call("/first dot", product, (a, Argument("weights", 0), sums.place), sums),
                call("/second dot", again, (a, Argument("weights", 256), h), hidden),
                call("/scale scale-rows", scale(ROWS, COLUMNS), (h, Argument("weights", 512), scaled.place), scaled),
            ),
            weights=bytes(weights),
            arena_bytes=512,
            workspace_bytes=32,
        )
