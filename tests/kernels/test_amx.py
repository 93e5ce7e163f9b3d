"""AMX's tile rows against the reference: zero differing integers, also where the rows would refuse as too empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from products import CONVOLUTIONS, SIGNED, UNSIGNED, columns_of, product, row, rows_of, signs, stored_input, weight
from this_cpu import needs

from subbyte.tvm_kernels import operators
from subbyte.tvm_kernels.kernels.tir.execute import Executable, host_target
from subbyte.tvm_kernels.kernels.x86 import amx, binary, dot
from subbyte.tvm_kernels.kernels.x86.amx_shape import Shape, shape_of
from subbyte.tvm_kernels.kernels.x86.instructions import VNNI_512
from subbyte.tvm_kernels.operators import (
    Bias,
    Bits,
    Codes,
    Combine,
    Conv2d,
    Epilogue,
    MatMul,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
)

needs_tiles = needs(amx.FEATURES)
ODD = Codes(-3, 252, 3)
SHAPES = {
    "one row": MatMul(1, 64, 16),
    "rows that do not fill a tile": MatMul(13, 128, 40),
    "rows that overlap": MatMul(37, 64, 64),
    "depth of one chunk that is not whole": MatMul(20, 52, 33),
    "depth that is copied": MatMul(33, 101, 50),
    "deep": MatMul(40, 1000, 24),
    "many panels": MatMul(300, 192, 400),
    **CONVOLUTIONS,
    "a tile of two rows": Conv2d(2, 14, 14, 64, 48, (3, 3), padding=(1, 1, 1, 1)),
    "places that overlap": Conv2d(1, 5, 37, 32, 20, (3, 3), padding=(1, 1, 1, 1)),
    "stride and wide": Conv2d(1, 20, 70, 16, 32, (3, 3), (2, 2), (1, 1, 1, 1)),
    "one dimension, upright": Conv2d(1, 50, 1, 12, 20, (5, 1), padding=(2, 0, 2, 0)),
    "one dimension, upright, no copy": Conv2d(2, 50, 1, 64, 20, (1, 1), (2, 1)),
    "small image, through the padding": Conv2d(2, 7, 7, 64, 40, (3, 3), padding=(1, 1, 1, 1)),
    "small image, many channels": Conv2d(1, 9, 5, 128, 300, (3, 3), padding=(1, 1, 1, 1)),
    "small image, dilation and groups": Conv2d(1, 9, 9, 64, 32, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 2),
    "parts of the depth": MatMul(150, 1600, 72),
    "parts that are window rows": Conv2d(1, 19, 12, 192, 72, (3, 3), padding=(1, 1, 1, 1)),
    "parts of window rows": Conv2d(1, 14, 14, 512, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    "parts and stride": Conv2d(1, 41, 70, 192, 33, (3, 3), (2, 2), (1, 1, 1, 1)),
    "parts, small image": Conv2d(2, 30, 7, 256, 24, (3, 3), padding=(1, 1, 1, 1)),
    "parts, dilation and groups": Conv2d(1, 40, 18, 512, 68, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 2),
    "dilation and groups": Conv2d(1, 15, 33, 128, 80, (3, 3), (1, 2), (2, 2, 2, 2), (2, 2), 2),
}


def differences(
    geometry: MatMul | Conv2d,
    activation: Codes | Bits,
    fmt: str,
    epilogue: Epilogue | None = None,
    **tensors: np.ndarray,
) -> int:
    """As those of products.py, of a product that is built whether its tiles are full or not, for which no row asks."""
    op = product(geometry, activation, fmt, epilogue)
    if isinstance(activation, Bits):
        assert binary.refusal(op) is None
        operands = binary.bytes_of(op)
    else:
        assert dot.refusal(op) is None
        operands = dot.operands_of(op, VNNI_512)
    built = amx.AmxProduct(op, VNNI_512, operands).build()
    stored = stored_input(geometry, activation)
    got = Executable(built, host_target(amx.FEATURES))([stored, *tensors.values()])
    wanted = operators.run(op, [stored], tensors)
    return sum(int((g.reshape(w.shape) != w).sum()) for g, w in zip(got, wanted, strict=True))


@needs_tiles
@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize(
    ("fmt", "activation"), [("int8", ODD), ("int4", ODD), ("ternary", ODD), ("int4", UNSIGNED)], ids=str
)
def test_products_of_codes(name: str, fmt: str, activation: Codes) -> None:
    assert differences(SHAPES[name], activation, fmt) == 0


@needs_tiles
@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"groups", "groups of odd depth"}))  # not whole words of signs
def test_products_of_signs(name: str) -> None:
    geometry = SHAPES[name]
    assert differences(geometry, signs(geometry), "binary") == 0


@needs_tiles
@pytest.mark.parametrize("level", [-128, 127])
def test_extremes(level: int) -> None:
    geometry = MatMul(20, 256, 32)
    op = product(geometry, UNSIGNED, weight(geometry, "int8", levels=np.array(level)))
    stored = np.full((20, 256), 255, np.uint8)
    kernel = Executable(row("dot-amx").build(op), host_target(amx.FEATURES))
    assert (kernel([stored])[0] == 256 * 255 * level).all()


@needs_tiles
@pytest.mark.parametrize(
    "geometry", [MatMul(37, 128, 50), Conv2d(1, 6, 21, 64, 50, (3, 3), padding=(1, 1, 1, 1))], ids=str
)
def test_every_form_of_output_and_a_residual(geometry: MatMul | Conv2d) -> None:
    """Positions that two tiles compute are stored once: a residual may lie where the output goes."""
    rng = np.random.default_rng(3)
    rows, columns = rows_of(geometry), columns_of(geometry)
    steps = (
        Scale(constant(rng.random(columns))),
        Bias(constant(rng.standard_normal(columns))),
        Combine("add", "other"),
    )
    stores = (
        ToFloat(),
        ToCodes(0.01, SIGNED),
        ToBits(constant(rng.standard_normal(columns)), Bits(columns)),
    )
    other = rng.standard_normal((rows, columns)).astype(np.float32)
    for store in stores:
        assert differences(geometry, ODD, "int4", Epilogue(steps, (store,)), other=other) == 0
    assert differences(geometry, signs(geometry), "binary", Epilogue(steps, stores), other=other) == 0


@needs_tiles
@settings(max_examples=25)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    draw = data.draw
    small = st.integers(1, 3)
    kernel = (draw(small), draw(small))
    padding = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    size = tuple(draw(st.integers((k - 1) * d + 1, 40)) for k, d in zip(kernel, dilation, strict=True))
    geometry = Conv2d(
        draw(st.integers(1, 2)), *size, draw(st.integers(1, 70)), draw(st.integers(1, 70)), kernel,
        (draw(small), draw(small)), (padding[0], padding[1], padding[2], padding[3]), dilation,
    )  # fmt: skip
    assert differences(geometry, ODD, "ternary") == 0
    assert differences(geometry, signs(geometry), "binary") == 0


def test_the_shapes_above_take_every_way_through_the_loops() -> None:
    def shape(name: str) -> Shape:
        geometry = SHAPES[name]
        op = product(geometry, ODD, "int8")
        return shape_of(dot.operands_of(op, VNNI_512))

    found = {name: (s.parts, s.splits, s.flat) for name in SHAPES for s in [shape(name)]}
    assert found["parts of the depth"] == (5, 5, False)
    assert found["parts that are window rows"] == (3, 1, False)
    assert found["parts of window rows"] == (1, 1, False)
    assert found["parts and stride"] == (3, 1, False)
    assert found["parts, small image"] == (3, 1, True)
    assert found["parts, dilation and groups"] == (3, 1, True)
    assert found["small image, through the padding"] == (1, 1, True)


def test_rows_leave_to_others_what_would_not_fill_tiles() -> None:
    wide, narrow, small = MatMul(197, 384, 384), MatMul(2, 384, 1024), MatMul(130, 64, 32)
    for name, activation, fmt in (("dot-amx", ODD, "ternary"), ("binary-amx", Bits(384), "binary")):
        ops = [product(g, activation, fmt) for g in (wide, narrow, small)]
        assert row(name).refuses(ops[0]) is None
        reason = row(name).refuses(ops[1])
        assert reason is not None
        assert reason.startswith("its tiles would be 12% full" if fmt == "ternary" else "2 positions are too few")
        assert row(name).refuses(ops[2]) == "the layer is too small to repay the setup of tile registers"


def test_a_configuration_says_what_ldtilecfg_reads() -> None:
    """Palette 1; four tiles of sums, two of weights, two of activations, as bytes of a row and rows."""
    geometry = MatMul(20, 96, 40)
    op = product(geometry, ODD, "int8")
    table = shape_of(dot.operands_of(op, VNNI_512)).configuration()
    assert table[0] == 1
    assert table[16:32].view(np.uint16).tolist() == [64] * 6 + [48, 48]
    assert table[48:56].tolist() == [10, 10, 10, 10, 12, 12, 10, 10]
    assert not table[1:16].any()
    assert not table[32:48].any()
    assert not table[56:].any()
