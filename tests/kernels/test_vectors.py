"""Vectors in TIR: constants and their bits under another type are what NumPy says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import FloatImm, IntImm, Ramp

from subbyte.tvm_kernels.kernels.tir.execute import host_target
from subbyte.tvm_kernels.kernels.tir.vectors import constants, reinterpret, splat, vector_type

Array = np.ndarray[Any, Any]


def stored(value: Any, dtype: str, lanes: int) -> Array:
    """The value, computed by a kernel."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("kernel")
        output = T.arg("output", T.buffer((lanes,), dtype))
        T.buffer_store(output, value, [0 if lanes == 1 else Ramp(0, 1, lanes)])
    array = np.empty(lanes, dtype)
    tensor = tvm.runtime.empty((lanes,), dtype)
    tvm.tirx.build(tvm.IRModule({"kernel": builder.get()}), target=host_target())["kernel"](tensor)
    array[...] = tensor.numpy()
    return array


CASES = {
    "a zero": (IntImm("uint8", 0), np.uint8([0]), "int8"),
    "a zero of several bytes": (IntImm("int32", 0), np.int32([0]), "float32"),
    "a zero cut into bytes": (T.Cast("int16", IntImm("uint8", 0)), np.int16([0]), "int8"),
    "a zero that is a sum": (IntImm("int32", 4) - IntImm("int32", 4), np.int32([0]), "float32"),
    "a sign bit": (IntImm("uint8", 200), np.uint8([200]), "int8"),
    "bytes": (IntImm("int32", -559038737), np.int32([-559038737]), "uint8"),
    "the bits of a number": (FloatImm("float32", 1.5), np.float32([1.5]), "int32"),
    "zeros": (splat(IntImm("uint8", 0), 4), np.zeros(4, np.uint8), "int8"),
    "zeros as one word": (splat(IntImm("uint8", 0), 4), np.zeros(4, np.uint8), "int32"),
    "a vector": (constants("uint8", [1, 2, 3, 255]), np.uint8([1, 2, 3, 255]), "int8"),
    "a vector as one word": (constants("uint8", [1, 2, 3, 255]), np.uint8([1, 2, 3, 255]), "uint32"),
}


@pytest.mark.parametrize("name", CASES)
def test_constants_are_reinterpreted_as_numpy_does(name: str) -> None:
    value, plain, dtype = CASES[name]
    wanted = plain.view(dtype)
    got = stored(reinterpret(vector_type(dtype, wanted.size), value), dtype, wanted.size)
    np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))
