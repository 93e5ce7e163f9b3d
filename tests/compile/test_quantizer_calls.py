"""Calls of quantizers in files, of any shape: codes where a kernel reads them, else the body, named in the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_graphs import Builder
from lowered import assert_equal

from subbyte.errors import CompileError, ModelError
from subbyte.tvm_kernels.lowering import lower_graph

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    ("shape", "step", "reason"),
    [
        ((), 3, "its result is a scalar, without axes"),
        ((3, 1), RNG.uniform(1, 5, 4), "its step broadcasts 'x' from [3, 1] to [3, 4]"),
        ((3, 5), [[[3]]], "its step broadcasts 'x' from [3, 5] to [1, 3, 5]"),
        ((3, 5), [3], None),
    ],
)
def test_steps_of_any_shape(shape: tuple[int, ...], step: Any, reason: str | None) -> None:
    b = Builder()
    model = b.model(b.quantize(b.input(*shape), step, -8, 7))
    (node,) = [node for node in lower_graph(model).order() if node.op in ("Quantize", "Elementwise")]
    assert node.declined.get("codes") == reason
    assert_equal(model, lower_graph(model, frozenset()))


@pytest.mark.parametrize("after", ["", "Relu", "MaxPool"])
@pytest.mark.parametrize(
    ("threshold", "bits"),
    [((), True), ((5,), True), ((3, 1, 1), True), ((1, 3, 1, 1), True), ((4, 1), False), ((2, 1, 1, 1), False)],
)
def test_thresholds_along_any_axis(threshold: tuple[int, ...], bits: bool, after: str) -> None:
    b = Builder()
    y = b.binarize(b.input(2, 3, 4, 5), RNG.normal(size=threshold))
    if after:
        y = b.node(after, y, **({"kernel_shape": [2, 2]} if after == "MaxPool" else {}))
    graph = lower_graph(b.model(y), frozenset())
    assert any(value.bits is not None for value in graph.values.values()) == bits
    assert_equal(b.model(y), graph)


def test_a_threshold_of_a_scalar() -> None:
    b = Builder()
    model = b.model(b.binarize(b.input(), 0.25))
    assert_equal(model, lower_graph(model, frozenset()))


def test_a_scalar_has_no_tokens() -> None:
    b = Builder()
    codes, _ = b.node("QuantizePerToken", b.input(1), domain="subbyte", outputs=2)
    model = b.model(codes)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.ClearField("dim")
    with pytest.raises(ModelError, match=r"inputs \[\] do not fit: a scalar has no last axis"):
        lower_graph(model)


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        (lambda b, x: b.quantize(x, np.arange(1, 34)), r"\(subbyte.Quantize\) in float32: it has 33 steps"),
        (lambda b, x: b.quantize(x, 3, -800, 800), r"\(subbyte.Quantize\) in float32: its levels -800 to 800"),
        (
            lambda b, x: b.binarize(x, [[0.1], [0.2]]),
            r"\(subbyte.Binarize\) in float32: its threshold of shape \[2, 1\]",
        ),
    ],
)
@pytest.mark.parametrize("fmt", ["int4", "binary"])
def test_low_bit_weights_behind_a_quantizer_in_float_are_a_fallback(fmt: str, quantizer: Any, reason: str) -> None:
    """Not a weight-only product, for which the file has no quantizer."""
    b = Builder()
    model = b.model(b.linear(quantizer(b, b.input(2, 33)), fmt, 5, 33))
    graph = lower_graph(model, frozenset())
    assert [node.op for node in graph.order() if node.fallback] == ["FloatProduct"]
    assert_equal(model, graph)
    with pytest.raises(CompileError, match=f"weights are {fmt}, but its activation .* is quantized by .*{reason}"):
        lower_graph(model, frozenset(), strict=True)
