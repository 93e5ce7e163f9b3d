"""Rows for CPUs without a multiplier, through LLVM and as C, against the reference: zero differing bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from agreement import Generator, row
from products import (
    CONVOLUTIONS,
    SIGNED,
    UNSIGNED,
    columns_of,
    differences,
    every_store,
    product,
    saturated_differences,
    signs,
    weight,
)
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import IntImm

from subbyte.formats import LowBitTensor, get
from subbyte.tvm_kernels.kernels.any_cpu.portable import count_bits
from subbyte.tvm_kernels.kernels.any_cpu.shift_add import WIDEST_CODE, Indices, tile_of, times
from subbyte.tvm_kernels.kernels.any_cpu.shift_add_depthwise import shift_byte
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import choose
from subbyte.tvm_kernels.kernels.tir.execute import aligned
from subbyte.tvm_kernels.operators import (
    Codes,
    Conv2d,
    MatMul,
    Product,
)

FORMATS = ["binary", "ternary", "int2", "int3", "int4", "int5", "uint4", "pow2_2", "pow2_3n", "pow2_4", "pow2_5"]
BOTH: list[Generator] = ["llvm", "c"]
UNEVEN = Codes(-37, 218, 37)
MATRICES = {
    "one of each": MatMul(1, 1, 1),
    "a vector": MatMul(1, 70, 40),
    "fewer rows than a tile, of odd number": MatMul(3, 9, 1),
    "tiles that overlap": MatMul(13, 37, 9),
    "several tables of the depth": MatMul(9, 601, 5),
}
DEPTHWISE = {
    channels: Conv2d(2, 7, 6, channels, channels, (3, 3), padding=(1, 1, 1, 1), groups=channels, **more)
    for channels, more in ((2, {}), (13, {}), (70, {"stride": (2, 1), "dilation": (1, 2)}))
}


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format(fmt: str, by: Generator) -> None:
    for shape in (MatMul(9, 37, 13), Conv2d(1, 5, 6, 3, 10, (3, 3), padding=(1, 1, 1, 1))):
        assert differences("shift-add", shape, SIGNED, weight(shape, fmt), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", ["ternary", "pow2_4"])
@pytest.mark.parametrize("shape", [*MATRICES.values(), *CONVOLUTIONS.values()], ids=[*MATRICES, *CONVOLUTIONS])
def test_geometries(shape: MatMul | Conv2d, fmt: str, by: Generator) -> None:
    assert differences("shift-add", shape, UNEVEN, weight(shape, fmt), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize(
    ("fmt", "level"), [("ternary", -1), ("ternary", 1), ("binary", 1), ("pow2_4", -64), ("int3", -4)]
)
def test_the_largest_sums(fmt: str, level: int, code: int, by: Generator) -> None:
    """A word of two rows holds sums up to 2^15 - 1 and no larger ones."""
    shape = MatMul(5, 700, 3)
    assert saturated_differences("shift-add", shape, UNSIGNED, fmt, level, code, by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", ["ternary", "pow2_4"])
@pytest.mark.parametrize("size", [7, 32])
def test_scales_by_group(size: int, fmt: str, by: Generator) -> None:
    for shape in (MatMul(9, 40, 21), Conv2d(1, 5, 6, 6, 12, (3, 3), padding=(1, 1, 1, 1), groups=3)):
        assert differences("shift-add", shape, SIGNED, weight(shape, fmt, group=size), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", ["binary", "ternary", "pow2_4"])
def test_bits(fmt: str, by: Generator) -> None:
    for shape in (MatMul(7, 100, 41), Conv2d(1, 5, 6, 35, 9, (3, 3), (2, 1), (1, 1, 1, 1))):
        assert differences("shift-add", shape, signs(shape), weight(shape, fmt), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("fmt", ["binary", "ternary", "pow2_2", "pow2_3n", "pow2_4", "pow2_5"])
@pytest.mark.parametrize("channels", DEPTHWISE)
def test_depthwise(channels: int, fmt: str, by: Generator) -> None:
    shape = DEPTHWISE[channels]
    assert differences("shift-add-depthwise", shape, UNEVEN, weight(shape, fmt), by=by) == 0


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize(
    ("kernel", "shape"), [("shift-add", CONVOLUTIONS["groups"]), ("shift-add-depthwise", DEPTHWISE[70])]
)
def test_every_store(kernel: str, shape: Conv2d, by: Generator) -> None:
    assert differences(kernel, shape, SIGNED, "ternary", every_store(columns_of(shape)), by=by) == 0


def test_popcount_without_a_multiplication() -> None:
    """C for a CPU without a multiplier counts the same bits."""
    words, counted = aligned((500,), "uint32"), aligned((500,), "int32")
    words[...] = np.random.default_rng(5).integers(0, 1 << 32, 500, np.uint64)
    words[:3] = 0, 0xFFFFFFFF, 0x80000001
    assert " * " in str(_popcount(multiplies=True))
    function = _popcount(multiplies=False)
    assert " * " not in str(function)
    module = tvm.tirx.build(tvm.IRModule({"count": function.with_attr("global_symbol", "count")}), target="llvm")
    module["count"](*map(tvm.runtime.from_dlpack, (words, counted)))
    assert counted.tolist() == [int(word).bit_count() for word in words]


def _popcount(multiplies: bool) -> Any:
    with code_generator("c", multiplies), IRBuilder() as builder, T.prim_func():
        T.func_name("count")
        x, y = T.arg("x", T.buffer((500,), "uint32")), T.arg("y", T.buffer((500,), "int32"))
        with T.serial(0, 500) as i:
            T.buffer_store(y, count_bits(x[i], 1), [i])
    return builder.get()


def test_weights_stay_packed() -> None:
    """Ternary takes two bits, binary one, powers of two four: no byte more than whole words for each column."""
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64)
    for bits, nbytes in ((1, 8), (2, 16), (4, 32)):
        packed = Indices(bits).packed(codes % (1 << bits))
        assert packed.nbytes == nbytes
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        assert (((packed.reshape(-1, 1) >> shifts) & ((1 << bits) - 1)).reshape(-1) == codes[0] % (1 << bits)).all()


def test_two_rows_share_a_word_where_their_sums_fit() -> None:
    ternary, powers = Indices(2), Indices(4)
    assert tile_of(100, 64, ternary, 1).lanes == 2
    assert tile_of(1, 64, ternary, 1).lanes == 1
    assert tile_of(100, 64, powers, 64).lanes == 1
    for length in (16, 129, 4096):
        tile = tile_of(100, length, ternary, 1)
        assert tile.words * ternary.weights_in_word * 255 < 1 << 15


def test_a_constant_product_is_shifts_and_additions() -> None:
    for level in (-128, -7, -1, 0, 1, 3, 64, 127):
        assert int(times(IntImm("int32", 5), level)) == 5 * level


def test_a_shift_byte_says_what_the_level_is() -> None:
    for level in (-64, -1, 0, 1, 2, 16384):
        byte = shift_byte(level)
        magnitude = (1 << (byte & 0x1F)) if byte & 0x40 else 0
        assert (-magnitude if byte < 0 else magnitude) == level


@pytest.mark.parametrize(
    ("fmt", "shape", "with_multiplier", "without"),
    [
        ("ternary", MatMul(3, 64, 8), "portable", "shift-add"),
        ("pow2_4", DEPTHWISE[13], "depthwise-portable", "shift-add-depthwise"),
        ("int4", DEPTHWISE[13], "depthwise-portable", "depthwise-portable"),
        ("int8", MatMul(3, 64, 8), "portable", "portable"),
    ],
)
def test_they_are_chosen_only_without_a_multiplier(fmt: str, shape: Any, with_multiplier: str, without: str) -> None:
    op = product(shape, SIGNED, fmt)
    with code_generator("c"):
        chosen = choose(op, frozenset())
        assert chosen.kernel.name == with_multiplier
        if without.startswith("shift"):
            assert dict(chosen.passed_over)[without] == "for CPUs without a multiplier"
    with code_generator("c", multiplies=False):
        assert choose(op, frozenset()).kernel.name == without


def test_what_they_refuse() -> None:
    shape = MatMul(3, 16, 8)

    def reason(kernel: str, fmt: str, geometry: Any = shape, group: int = 0) -> str:
        op = product(geometry, SIGNED, weight(geometry, fmt, group=group))
        return str(row(Product, kernel).refuses(op))

    assert f"more than {WIDEST_CODE} bits" in reason("shift-add", "int8")
    assert "not powers of two" in reason("shift-add-depthwise", "int4", DEPTHWISE[2])
    assert "not a depthwise" in reason("shift-add-depthwise", "ternary")
    assert "by group" in reason("shift-add-depthwise", "ternary", DEPTHWISE[2], 3)
    fmt = get("uint4")
    scale, zero_points = np.ones(8, np.float32), np.ones(8, np.int32)
    plain = weight(shape, "uint4")
    w = LowBitTensor.from_levels(fmt, np.zeros((8, 16), np.int32), scale, plain.granularity, zero_points)
    op = product(shape, SIGNED, w)
    assert row(Product, "shift-add").refuses(op) == "weights have zero points"
