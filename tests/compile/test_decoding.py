"""A compile unpacks, decodes or encodes a weight once, whatever moves its axes and whichever kernel takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hand_graphs import Builder
from qdq_file import File
from test_weights_by_group import grouped_weight

from subbyte.formats import Format, payload
from subbyte.tvm_kernels.lowering import lower
from subbyte.tvm_kernels.machines import get_target

V4 = get_target("x86-64-v4").features
TARGETS = {
    "none": frozenset[str](),
    "x86-64-v3": get_target("x86-64-v3").features,
    "vnni": V4 | {"avx512vnni", "avx512vpopcntdq"},
    "amx": V4 | {"avx512vnni", "amxtile", "amxint8"},
    "cortex-a53": get_target("cortex-a53").features,
    "cortex-m4": get_target("cortex-m4").features,
}
PADS = {"pads": [1, 1, 1, 1]}
Model = tuple[onnx.ModelProto, int]  # and the elements of its weights


@pytest.fixture
def elements(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many elements were decoded, encoded, unpacked and packed; a single one fills places that hold no weight."""
    found: Counter[str] = Counter()

    def count(owner: object, name: str, size: Callable[..., int]) -> None:
        original = getattr(owner, name)

        def counting(*given: Any) -> Any:
            if size(*given) > 1:
                found[name] += size(*given)
            return original(*given)

        monkeypatch.setattr(owner, name, counting)

    count(Format, "decode", lambda fmt, codes: np.size(codes))
    count(Format, "encode", lambda fmt, levels: np.size(levels))
    count(payload, "unpack", lambda packed, bits, length: prod(packed.shape[:-1]) * length)
    count(payload, "pack", lambda codes, bits: np.size(codes))
    return found


# ---- weights of the dialect, packed in the file ----


def linear(fmt: str) -> Model:
    b = Builder()
    return b.model(b.linear(b.quantize(b.input(4, 96)), fmt, 40, 96)), 40 * 96


def conv(fmt: str) -> Model:
    b = Builder()
    return b.model(b.conv(b.quantize(b.input(1, 32, 6, 6)), fmt, 24, 32, 3, 3, **PADS)), 24 * 32 * 9


def depthwise(fmt: str) -> Model:
    b = Builder()
    return b.model(b.conv(b.quantize(b.input(1, 64, 6, 6)), fmt, 64, 1, 3, 3, group=64, **PADS)), 64 * 9


def signs() -> Model:
    b = Builder()
    codes = b.binarize(b.input(1, 64, 6, 6))
    return b.model(b.conv(codes, "binary", 24, 64, 3, 3)), 24 * 64 * 9


def by_group(*weight: int) -> Model:
    b = Builder()
    x = b.quantize(b.input(*((1, weight[1], 6, 6) if len(weight) > 2 else (4, weight[1]))))
    w = grouped_weight(b, "int4", 32, *weight)
    y = b.node("Conv", x, w, **PADS) if len(weight) > 2 else b.node("MatMul", x, b.node("Transpose", w, perm=[1, 0]))
    return b.model(y), prod(weight)


def behind_a_flatten() -> Model:
    """Its columns are put in the order in which pixels lie: channels last."""
    b = Builder()
    y = b.node("Relu", b.conv(b.quantize(b.input(1, 8, 4, 4)), "int8", 16, 8, 1, 1))
    flat = b.node("Flatten", b.quantize(y, 16.0, 0, 255))
    return b.model(b.linear(flat, "ternary", 10, 256)), 16 * 8 + 10 * 256


def weight_only() -> Model:
    b = Builder()
    w = b.node("Transpose", b.decode("int8", 40, 96), perm=[1, 0])
    return b.model(b.node("Mul", b.node("MatMul", b.input(4, 96), w), b.uniform(40))), 40 * 96


FORMATS = ("binary", "ternary", "int4", "int5", "int8", "pow2_4")
PACKED: dict[str, Callable[[], Model]] = {
    **{f"{make.__name__} {fmt}": partial(make, fmt) for make in (linear, conv, depthwise) for fmt in FORMATS},
    "signs": signs,
    "matrix by group": partial(by_group, 40, 96),
    "windows by group": partial(by_group, 24, 32, 3, 3),
    "behind a Flatten": behind_a_flatten,
    "weight-only": weight_only,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", PACKED)
def test_packed_weights_are_unpacked_and_decoded_once(case: str, target: str, elements: Counter[str]) -> None:
    model, size = PACKED[case]()
    elements.clear()
    plan = lower(model, TARGETS[target])
    assert elements == {"unpack": size, "decode": size}
    assert sum(call.macs > 0 for call in plan.calls) == (2 if case == "behind a Flatten" else 1)


# ---- weights of other exporters, integers in the file ----


def quantized(shape: tuple[int, ...], product: str, move: Callable[[File, str], str] = lambda f, w: w) -> Model:
    f = File(*((1, 6, 4, 4) if product == "Conv" else (5, 6)))
    return f.model(f.node(product, f.quantized("x", zero=5), move(f, f.weight(*shape)))), prod(shape)


def with_zero_points() -> Model:
    """Levels less their zero points, which differ by output channel, need nine bits."""
    f, rng = File(5, 6), np.random.default_rng(0)
    q = f.constant(rng.integers(0, 256, (6, 8)), np.uint8)
    w = f.dequantized(q, rng.uniform(0.005, 0.02, 8), rng.integers(90, 160, 8), np.uint8, axis=1)
    return f.model(f.node("MatMul", f.quantized("x"), w)), 6 * 8


INTEGERS: dict[str, Callable[[], Model]] = {
    "convolution": lambda: quantized((8, 6, 3, 3), "Conv"),
    "matrix": lambda: quantized((8, 6), "MatMul", lambda f, w: f.node("Transpose", w, perm=[1, 0])),
    "zero points": with_zero_points,
    "another shape": lambda: quantized(
        (8, 3, 2), "Conv", lambda f, w: f.node("Reshape", w, f.constant([8, 6, 1, 1], np.int64))
    ),
    "another order and shape": lambda: quantized(
        (8, 3, 2),
        "MatMul",
        lambda f, w: f.node("Reshape", f.node("Transpose", w, perm=[1, 2, 0]), f.constant([6, 8], np.int64)),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", INTEGERS)
def test_weights_of_integers_are_encoded_once(case: str, target: str, elements: Counter[str]) -> None:
    model, size = INTEGERS[case]()
    plan = lower(model, TARGETS[target])
    assert elements == {"encode": size}
    assert [call.kind for call in plan.calls if call.macs] == ["QuantizedProduct"]
