"""Weights of QDQ files behind moves of data: integers as they would be without, where their scales follow."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_file import File, assert_close

from subbyte.errors import CompileError
from subbyte.tvm_kernels.lowering import lower_graph

RNG = np.random.default_rng(11)
IN_ANOTHER_SHAPE = {
    "Unsqueeze": (lambda f, w: f.node("Unsqueeze", w, f.constant([2, 3], np.int64)), (8, 6), "Conv"),
    "Squeeze": (lambda f, w: f.node("Squeeze", w, f.constant([2, 3], np.int64)), (8, 6, 1, 1), "Gemm"),
    "Flatten": (lambda f, w: f.node("Flatten", w), (8, 2, 3, 1), "Gemm"),
    "Reshape": (lambda f, w: f.node("Reshape", w, f.constant([8, 6, 1, 1], np.int64)), (8, 3, 2), "Conv"),
    "Transpose, Reshape": (
        lambda f, w: f.node("Reshape", f.node("Transpose", w, perm=[1, 2, 0]), f.constant([6, 8], np.int64)),
        (8, 3, 2),
        "MatMul",
    ),
}


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("name", IN_ANOTHER_SHAPE)
def test_weights_in_another_shape_stay_integers(name: str, by_channel: bool) -> None:
    reshape, shape, product = IN_ANOTHER_SHAPE[name]
    f = File(*((1, 6, 4, 4) if product == "Conv" else (5, 6)))
    q = f.constant(RNG.integers(0, 256, shape), np.uint8)
    w = f.weight(*shape) if by_channel else f.dequantized(q, 0.01, 99, np.uint8)
    extra = {"transB": 1} if product == "Gemm" else {}
    assert_close(f.model(f.node(product, f.quantized("x", zero=5), reshape(f, w), **extra)), "QuantizedProduct")


def test_weights_whose_scales_do_not_survive_a_reshape_stay_right_and_are_named() -> None:
    f = File(5, 8)
    w = f.node("Reshape", f.weight(4, 8), f.constant([8, 4], np.int64))
    model = f.model(f.node("MatMul", f.quantized("x"), w))
    assert_close(model, strict=False)
    with pytest.raises(
        CompileError, match=rf"weights are int8, but '{w}' \(Reshape\) in between is computed in float32"
    ):
        lower_graph(model, strict=True)


@pytest.mark.parametrize("name", IN_ANOTHER_SHAPE)
def test_tables_in_another_shape_are_added(name: str) -> None:
    reshape, shape, product = IN_ANOTHER_SHAPE[name]
    f = File(*((8, 6, 1, 1) if product == "Conv" else (6, 8) if product == "MatMul" else (8, 6)))
    assert_close(f.model(f.node("Add", "x", reshape(f, f.weight(*shape)))))
