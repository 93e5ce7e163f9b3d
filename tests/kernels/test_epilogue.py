"""The epilogue against NumPy: exact float32 arithmetic, packing, and the accuracy of the float functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T
from tvm.tirx import Ramp

from subbyte.errors import CompileError
from subbyte.formats import reference
from subbyte.tvm_kernels.kernels.tir.epilogue import EpilogueEmitter
from subbyte.tvm_kernels.kernels.tir.execute import Executable
from subbyte.tvm_kernels.kernels.tir.signature import prim_func
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Clip,
    Codes,
    Combine,
    Elementwise,
    Epilogue,
    PRelu,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
    run,
)

LANES = [1, 4, 8, 16]


def elementwise(epilogue: Epilogue, rows: int, columns: int, lanes: int, dtype: str = "float32") -> Executable:
    """A kernel that is nothing but the epilogue."""
    with prim_func("kernel") as signature:
        x = signature.input("$0", (rows, columns), dtype)
        emitter = EpilogueEmitter(epilogue, rows, columns, signature, x86=True)
        with T.parallel(0, rows) as row:
            emitter.emit_channels(lambda at, n: x[row, at if n == 1 else Ramp(at, 1, n)], row, 0, columns, lanes)
    return Executable(signature.built())


@pytest.mark.parametrize("lanes", [1, 16])
def test_steps_in_a_row_that_read_their_value_several_times(lanes: int) -> None:
    """Written out in each other they would be 2^16 and more: the code generator would not end."""
    functions = ("tanh", "sigmoid", "gelu", "silu", "hardswish")
    steps = tuple(Activate(functions[i % 5]) if i % 3 else PRelu(constant(0.3)) for i in range(16))
    x = np.random.default_rng(1).normal(size=(3, 33)).astype(np.float32)
    got = elementwise(Epilogue(steps), 3, 33, lanes)({"$0": x})
    (wanted,) = run(Elementwise("e", 3, 33, Epilogue(steps)), [x])
    np.testing.assert_allclose(got[0], wanted, 1e-5, 1e-6)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("columns", [1, 31, 77])
def test_every_step_and_store_is_exact(lanes: int, columns: int) -> None:
    rng = np.random.default_rng(columns)
    x, residual, gate = rng.normal(size=(3, 5, columns)).astype(np.float32) * 3
    scale, bias, threshold, slope = rng.normal(size=(4, columns)).astype(np.float32)
    step = rng.random((5, 1)).astype(np.float32)
    epilogue = Epilogue(
        (
            RowScale("step"),
            Scale(scale),
            Bias(bias),
            Combine("add", "residual"),
            Combine("multiply", "gate"),
            Combine("subtract", "residual"),
            PRelu(slope),
            Clip(-1.7, 2.3),
        ),
        (
            ToFloat(),
            ToCodes(55.3, Codes(-128, 127, 128)),
            ToCodes(0.013, Codes(0, 15), divide=True),
            ToBits(threshold, Bits(columns)),
        ),
    )
    got = elementwise(epilogue, 5, columns, lanes)({"$0": x, "step": step, "residual": residual, "gate": gate})
    y = (x * step * scale + bias + residual) * gate - residual
    y = np.clip(np.where(y >= 0, y, y * slope), np.float32(-1.7), np.float32(2.3))
    codes = np.clip(np.rint(y * np.float32(55.3)), -128, 127) + 128
    divided = np.clip(np.rint(y / np.float32(0.013)), 0, 15)
    np.testing.assert_array_equal(got[0], y)
    np.testing.assert_array_equal(got[1], codes.astype(np.uint8))
    np.testing.assert_array_equal(got[2], divided.astype(np.uint8))
    np.testing.assert_array_equal(got[3], reference.pack_bits(reference.binarize(y, threshold)))


def test_products_are_not_fused_with_additions() -> None:
    x = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    scale, bias = np.float32(1.1), np.float32(-0.7)
    (got,) = elementwise(Epilogue((Scale(constant(scale)), Bias(constant(bias)))), 50, 64, 16)([x])
    np.testing.assert_array_equal(got, x * scale + bias)
    fused = (x.astype(np.float64) * scale + bias).astype(np.float32)
    assert (fused != x * scale + bias).any(), "the data cannot tell the two apart"


@pytest.mark.parametrize("lanes", LANES)
def test_ties_signed_zeros_and_huge_values(lanes: int) -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -0.0, 0.0, 1e30, -1e30, 3e9, -3e9, 126.5, 127.5, -128.5, 255.5, 0.0]])
    x = x.astype(np.float32)
    stores = (ToCodes(1.0, Codes(-128, 127, 128)), ToBits(constant(0.0), Bits(16)))
    codes, bits = elementwise(Epilogue((), stores), 1, 16, lanes)([x])
    expected = np.clip(np.rint(x), -128, 127).astype(np.int32) + 128
    np.testing.assert_array_equal(codes, expected.astype(np.uint8))
    np.testing.assert_array_equal(bits, reference.pack_bits(reference.binarize(x)))


def test_an_int32_accumulator_becomes_the_nearest_float() -> None:
    x = np.array([[0, -1, (1 << 24) + 1, -(1 << 24) - 3, (1 << 31) - 1, -(1 << 31), 7, 8]], np.int32)
    (got,) = elementwise(Epilogue(), 1, 8, 8, "int32")([x])
    np.testing.assert_array_equal(got, x.astype(np.float32))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf)(x)


FUNCTIONS = {
    "relu": (lambda x: np.maximum(x, 0), 0.0),
    "gelu": (lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), 1e-6),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2e-7),
    "tanh": (np.tanh, 5e-7),
    "silu": (lambda x: x / (1 + np.exp(-x)), 2e-6),
    "hardswish": (lambda x: x * np.clip(x + 3, 0, 6) / 6, 2e-6),
    "hardsigmoid": (lambda x: np.clip(x + 3, 0, 6) / 6, 2e-7),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_float_functions_stay_within_their_stated_error(name: str) -> None:
    exact, tolerance = FUNCTIONS[name]
    x = np.concatenate([np.linspace(-12, 12, 6400), np.linspace(-0.01, 0.01, 640), np.linspace(-200, 80, 640)])
    x = x.astype(np.float32).reshape(-1, 64)
    (got,) = elementwise(Epilogue((Activate(name),)), x.shape[0], 64, 16)([x])
    with np.errstate(over="ignore"):
        wanted = exact(x.astype(np.float64))
    assert np.abs(got - wanted).max() <= tolerance * max(1.0, float(np.abs(wanted).max()) / 12)


def test_a_vector_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(CompileError, match="scale has 3 values, expected 1 or 8"):
        elementwise(Epilogue((Scale(np.ones(3, np.float32)),)), 1, 8, 8)
