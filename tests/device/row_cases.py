"""Small operators of every kind, with inputs: each kernel row serves at least one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte.formats import LowBitTensor, PerChannel, PerGroup, get
from subbyte.formats.reference import pack_bits
from subbyte.tvm_kernels.operators import (
    Activate,
    Bias,
    Bits,
    Clip,
    Codes,
    Combine,
    Conv2d,
    Elementwise,
    Epilogue,
    Float,
    FloatWeight,
    MatMul,
    Operator,
    PRelu,
    Product,
    RowScale,
    Scale,
    ToBits,
    ToCodes,
    ToFloat,
    constant,
    operators,
)

Array = npt.NDArray[Any]
RNG = np.random.default_rng(29)
SIGNED = Codes(-128, 127, 128)
UNSIGNED = Codes(0, 255)
UNEVEN = Codes(-37, 218, 37)


@dataclass(frozen=True, eq=False)
class Case:
    """An operator and its inputs; `exact`: no bit may differ, or else the bundles' tolerance holds."""

    name: str
    op: Operator
    own: tuple[Array, ...]
    tensors: Mapping[str, Array] = field(default_factory=dict)
    exact: bool = True


def numbers(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


# ---- quantized products ----

PADDED = {"padding": (1, 1, 1, 1)}
MATRIX = MatMul(9, 37, 13)
DEEP = MatMul(3, 600, 5)
CONV = Conv2d(1, 5, 6, 3, 10, (3, 3), **PADDED)
WIDE = Conv2d(1, 5, 4, 8, 36, (3, 3), (1, 1), (1, 1, 1, 1))
UNEVEN_CONV = Conv2d(2, 9, 11, 3, 10, (5, 3), (2, 1), (0, 1, 2, 1), (1, 2))
GROUPED = Conv2d(1, 7, 9, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2)
POINTWISE = Conv2d(2, 5, 3, 20, 33, (1, 1))
DEPTHWISE = Conv2d(1, 5, 4, 36, 36, (3, 3), padding=(1, 1, 1, 1), groups=36)
STRIDED_DEPTHWISE = Conv2d(2, 9, 11, 12, 12, (3, 2), (2, 1), (0, 1, 2, 1), (1, 2), 12)
ODD_DEPTHWISE = Conv2d(1, 5, 5, 13, 13, (3, 3), padding=(1, 1, 1, 1), groups=13)


def columns_of(shape: MatMul | Conv2d) -> int:
    return shape.columns if isinstance(shape, MatMul) else shape.out_channels


def rows_of(shape: MatMul | Conv2d) -> int:
    return shape.rows if isinstance(shape, MatMul) else shape.batch * shape.out_height * shape.out_width


def weight(shape: MatMul | Conv2d, fmt: str, group: int = 0, zero_points: bool = False) -> LowBitTensor:
    if isinstance(shape, MatMul):
        dims: tuple[int, ...] = (shape.columns, shape.depth)
    else:
        dims = (shape.out_channels, *shape.kernel, shape.channels // shape.groups)
    granularity = PerGroup(group) if group else PerChannel(0)
    scales = granularity.scale_shape((dims[0], int(np.prod(dims[1:]))))
    zero = RNG.integers(0, 16, scales) if zero_points else None
    levels = RNG.choice(get(fmt).levels.values, dims)
    return LowBitTensor.from_levels(get(fmt), levels, RNG.random(scales), granularity, zero)


def stored(shape: MatMul | Conv2d, activation: Codes | Bits) -> Array:
    """Any codes, or any signs."""
    if isinstance(shape, MatMul):
        dims: tuple[int, ...] = (shape.rows, shape.depth)
    else:
        dims = (shape.batch, shape.height, shape.width, shape.channels)
    if isinstance(activation, Bits):
        return pack_bits(RNG.choice([-1, 1], dims))
    return RNG.integers(0, 256, dims).astype(np.uint8)


def product(
    name: str, shape: MatMul | Conv2d, activation: Codes | Bits, w: LowBitTensor, after: Epilogue | None = None
) -> Case:
    op = Product(name, activation, w, shape, after or Epilogue())
    rows, columns = rows_of(shape), columns_of(shape)
    tensors = {"step": numbers(rows, 1), "residual": numbers(rows, columns)} if after is FULL.get(columns) else {}
    return Case(name, op, (stored(shape, activation),), tensors)


def _full(columns: int) -> Epilogue:
    """Steps of every exact kind, and every form."""
    steps = (
        Scale(numbers(columns) * np.float32(1e-3)),
        RowScale("step"),
        Bias(numbers(columns)),
        Combine("add", "residual"),
        Activate("relu"),
    )
    threshold = numbers(columns)
    stores = (
        ToFloat(),
        ToBits(threshold, Bits(columns)),
        ToCodes(37.0, SIGNED),
        ToCodes(0.03, UNSIGNED, True),
        ToCodes(1e30, UNEVEN),
    )
    return Epilogue(steps, stores)


FULL = {columns: _full(columns) for columns in (9, 10, 13, 36)}


def to_bits(columns: int) -> Epilogue:
    """What a layer of a binary network ends in."""
    return Epilogue((Scale(numbers(columns)), Bias(numbers(columns))), (ToBits(numbers(columns), Bits(columns)),))


def of_codes() -> list[Case]:
    cases = []
    for fmt in ("int8", "int4", "ternary", "pow2_4", "binary", "uint4"):
        for kind, shape, activation in (
            ("matrix", MATRIX, SIGNED),
            ("convolution", CONV, UNSIGNED),
            ("depthwise", DEPTHWISE, SIGNED),
        ):
            cases.append(product(f"{kind} {fmt}", shape, activation, weight(shape, fmt)))
    cases += [
        product("deep matrix int8", DEEP, SIGNED, weight(DEEP, "int8")),
        product("channels in fours int4", WIDE, SIGNED, weight(WIDE, "int4"), FULL[36]),
        product("uneven convolution ternary", UNEVEN_CONV, UNEVEN, weight(UNEVEN_CONV, "ternary")),
        product("grouped convolution int4", GROUPED, UNSIGNED, weight(GROUPED, "int4")),
        product("pointwise int4", POINTWISE, SIGNED, weight(POINTWISE, "int4")),
        product("strided depthwise int8", STRIDED_DEPTHWISE, UNSIGNED, weight(STRIDED_DEPTHWISE, "int8")),
        product("odd depthwise ternary", ODD_DEPTHWISE, UNEVEN, weight(ODD_DEPTHWISE, "ternary"), FULL[13]),
        product("depthwise, all stores", DEPTHWISE, UNSIGNED, weight(DEPTHWISE, "int4"), FULL[36]),
        product("matrix, all stores", MATRIX, UNSIGNED, weight(MATRIX, "pow2_4"), FULL[13]),
        product("convolution, all stores", CONV, SIGNED, weight(CONV, "int8"), FULL[10]),
        product("uint4 with zero points", MATRIX, SIGNED, weight(MATRIX, "uint4", zero_points=True)),
        product("int4 by group", MATRIX, SIGNED, weight(MATRIX, "int4", group=7), FULL[13]),
        product("convolution int4 by group", CONV, UNSIGNED, weight(CONV, "int4", group=5)),
        product("pow2_4, uneven zero point", MATRIX, UNEVEN, weight(MATRIX, "pow2_4")),
    ]
    for channels in range(1, 10):
        shape = Conv2d(1, 4, 3, channels, 5, (3, 3), **PADDED)
        cases.append(product(f"{channels} channels int4", shape, UNSIGNED, weight(shape, "int4")))
    for channels, multiplier in ((2, 3), (3, 4), (5, 2), (7, 3)):
        shape = Conv2d(1, 4, 3, channels, channels * multiplier, (3, 3), groups=channels, **PADDED)
        name = f"depthwise, {multiplier} filters for each of {channels} channels"
        cases.append(product(name, shape, UNSIGNED, weight(shape, "int4")))
    return cases


def of_bits() -> list[Case]:
    vector = MatMul(1, 33, 10)
    matrix = MatMul(7, 100, 41)
    full_words = Conv2d(2, 4, 5, 64, 9, (3, 3), (1, 1), (1, 0, 0, 1), (1, 2))
    padded = Conv2d(1, 5, 6, 35, 36, (3, 3), (2, 1), (1, 1, 1, 1))
    grouped = Conv2d(1, 5, 5, 40, 8, (3, 3), padding=(1, 1, 1, 1), groups=2)

    def signs(
        name: str, shape: MatMul | Conv2d, after: Epilogue | None = None, fmt: str = "binary", group: int = 0
    ) -> Case:
        activation = Bits(shape.depth if isinstance(shape, MatMul) else shape.channels)
        return product(name, shape, activation, weight(shape, fmt, group), after)

    return [
        signs("signs, vector", vector),
        signs("signs, matrix", matrix),
        signs("signs, matrix to bits", matrix, to_bits(41)),
        signs("signs, padded convolution", padded, FULL[36]),
        signs("signs, padded convolution to bits", padded, to_bits(36)),
        signs("signs, whole words", full_words, FULL[9]),
        signs("signs, whole words to bits", full_words, to_bits(9)),
        signs("signs, depthwise to bits", DEPTHWISE, to_bits(36)),
        signs("signs, strided depthwise to bits", STRIDED_DEPTHWISE, to_bits(12)),
        signs("signs, grouped", grouped),
        signs("signs by group", matrix, group=32),
        signs("signs times int4", grouped, fmt="int4"),
    ]


# ---- the rest ----


def others() -> list[Case]:
    """Every step and store of an epilogue."""
    rows, channels = 5, 67
    steps = (
        Scale(numbers(channels)),
        Bias(numbers(channels)),
        Combine("multiply", "other"),
        PRelu(numbers(channels)),
        Clip(-1.5, 1.25),
    )
    stores = (
        ToFloat(),
        ToCodes(50.0, SIGNED),
        ToCodes(0.01, UNSIGNED, True),
        ToBits(numbers(channels), Bits(channels)),
    )
    every = Elementwise("elementwise, all stores", rows, channels, Epilogue(steps, stores))
    return [Case(every.name, every, (numbers(rows, channels),), {"other": numbers(rows, channels)})]


def floats() -> list[Case]:
    """Products that add up float32 in an order of their own."""
    shape, depthwise = Conv2d(2, 9, 8, 4, 6, (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 2), ODD_DEPTHWISE
    matrix = MatMul(7, 40, 33)
    cases = [
        Case(
            "float convolution",
            Product("c", Float(), FloatWeight(numbers(6, 3, 2, 2)), shape, Epilogue()),
            (numbers(2, 9, 8, 4),),
        ),
        Case(
            "float depthwise",
            Product("d", Float(), FloatWeight(numbers(13, 3, 3, 1)), depthwise, Epilogue()),
            (numbers(1, 5, 5, 13),),
        ),
        Case(
            "weight-only",
            Product("w", Float(), weight(matrix, "int8"), matrix, Epilogue((Scale(numbers(33)),))),
            (numbers(7, 40),),
        ),
        Case(
            "weight-only, real levels",
            Product("w", Float(), weight(matrix, "nf4", 16), matrix, Epilogue()),
            (numbers(7, 40),),
        ),
        Case(
            "weight-only convolution",
            Product("w", Float(), weight(shape, "int4"), shape, Epilogue()),
            (numbers(2, 9, 8, 4),),
        ),
    ]
    for transposed in (False, True):
        right = numbers(3, 33, 40) if transposed else numbers(3, 40, 33)
        op = Product("b", Float(), Float(), replace(matrix, batch=3, transposed=transposed), Epilogue())
        cases.append(Case(f"batch, transposed {transposed}", op, (numbers(3, 7, 40), right)))
    return [Case(c.name, c.op, c.own, c.tensors, exact=False) for c in cases]


def of_two_tensors() -> list[Case]:
    cases = []
    for transposed in (False, True):
        pair = MatMul(7, 37, 9, 3, transposed)
        own = [RNG.integers(0, 256, (3, *sides)).astype(np.uint8) for sides in ((7, 37), (37, 9))]
        op = Product("t", SIGNED, UNEVEN, pair, FULL[9])
        tensors = {"step": numbers(21, 1), "residual": numbers(21, 9)}
        cases.append(Case(f"codes by codes, transposed {transposed}", op, (own[0], own[1]), tensors))
    # Sums beyond 2^24, which float32 cannot add up; one row, for which nothing is packed; whole vectors of columns.
    for name, pair in {
        "deep": MatMul(5, 700, 9),
        "one row": MatMul(1, 37, 9, 3),
        "whole vectors": MatMul(3, 37, 64, 3, False),
    }.items():
        own = [
            RNG.integers(0, 256, (pair.batch, *sides)).astype(np.uint8)
            for sides in ((pair.rows, pair.depth), (pair.columns, pair.depth))
        ]
        op = Product("t", SIGNED, UNEVEN, pair, Epilogue((Scale(constant(0.01)),)))
        cases.append(Case(f"codes by codes, {name}", op, (own[0], own[1])))
    bits = [pack_bits(RNG.choice([-1, 1], (3, rows, 37))) for rows in (7, 9)]
    op = Product("t", Bits(37), Bits(37), MatMul(7, 37, 9, 3), FULL[9])
    return [*cases, Case("bits by bits", op, (bits[0], bits[1]), tensors)]


def of_operators() -> list[Case]:
    """The examples that operators have in their own files."""
    examples = [example for operator in operators() for example in operator.examples(RNG)]
    return [Case(one.operator.name, one.operator, one.inputs, one.tensors, one.exact) for one in examples]


CASES: list[Case] = [*of_codes(), *of_bits(), *of_two_tensors(), *others(), *floats(), *of_operators()]
