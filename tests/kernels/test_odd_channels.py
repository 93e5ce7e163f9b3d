"""Convolutions of every small number of channels, with zero point 0 and others, by every row: zero differing bits."""

from __future__ import annotations

import pytest
from agreement import Generator, differing
from products import SIGNED, UNSIGNED, product, stored_input, weight

from subbyte.tvm_kernels.abi import Wanted, compile_objects
from subbyte.tvm_kernels.kernels.code_generator import code_generator
from subbyte.tvm_kernels.kernels.registry import rows
from subbyte.tvm_kernels.kernels.tir.execute import host_target
from subbyte.tvm_kernels.machines.host import host_features
from subbyte.tvm_kernels.operators import Codes, Conv2d, MatMul, Product

UNEVEN = Codes(-3, 252, 3)
PLAIN = frozenset({"dsp"})  # the feature that C sources have a plain form of
ANY = MatMul(1, 1, 1)
ROWS = rows(product(ANY, SIGNED, "int4"))  # those for codes and low-bit weights
RUN: list[tuple[str, Generator]] = [
    *((r.name, "llvm") for r in ROWS if r.needs <= host_features()),
    *((r.name, "c") for r in ROWS if r.needs <= PLAIN),
]
CHANNELS: dict[Generator, tuple[int, ...]] = {"llvm": (1, 2, 3, 4, 5, 6, 7, 8, 9), "c": (1, 3, 4, 5, 6)}
ELSEWHERE = [r.name for r in ROWS if not (r.needs <= host_features() or r.needs <= PLAIN)]


def geometries(channels: int) -> list[Conv2d]:
    """Padded convolutions of that many channels: dense, by groups, one filter a channel, several filters a channel."""
    made = [
        Conv2d(1, 4, 7, channels, 5, (3, 3), padding=(1, 1, 1, 1)),
        Conv2d(2, 7, 6, channels, 3, (3, 2), (2, 1), (0, 1, 2, 1), (1, 2)),
        Conv2d(1, 1, 13, channels, 6, (1, 3), padding=(0, 1, 0, 1)),
    ]
    for groups in (2, 3):
        if channels % groups == 0 and channels > groups:
            made.append(Conv2d(1, 5, 4, channels, 2 * groups, (3, 3), padding=(1, 1, 1, 1), groups=groups))
    for multiplier in (1, 2 + channels % 3) if channels > 1 else ():  # 2, 3 and 4 in turn
        made.append(Conv2d(1, 5, 4, channels, multiplier * channels, (3, 3), padding=(1, 1, 1, 1), groups=channels))
    return made


def operators(kernel: str, channels: int) -> list[Product]:
    """Products of that row's kind of weights: all with zero point 0, and one in turn with others."""
    made = []
    for number, geometry in enumerate(geometries(channels)):
        weights = weight(geometry, "pow2_4" if kernel == "shift-add-depthwise" else "int4")
        for activation in (UNSIGNED, UNEVEN, SIGNED) if number == channels % 3 else (UNSIGNED,):
            made.append(product(geometry, activation, weights))
    return made


@pytest.mark.parametrize(("kernel", "by"), RUN)
def test_no_bit_differs(kernel: str, by: Generator) -> None:
    with code_generator(by):
        refuses = next(r for r in ROWS if r.name == kernel).refuses
        served = [op for channels in CHANNELS[by] for op in operators(kernel, channels) if refuses(op) is None]
    expected = {4} if kernel == "dsp-depthwise" else {3, 5}  # which takes channels in fours
    assert {op.geometry.channels for op in served} >= expected
    for op in served:
        wrong = differing(op, kernel, [stored_input(op.geometry, op.left)], by)
        assert wrong == 0, f"{wrong} bytes differ: {op.left}, {op.geometry}"


@pytest.mark.parametrize("kernel", ELSEWHERE)
def test_rows_that_this_cpu_cannot_run_compile(kernel: str) -> None:
    """Also where the row would leave the product to others, as too small for it; but depthwise rows take no others."""
    chosen = next(r for r in ROWS if r.name == kernel)
    products = [op for channels in (1, 3, 6) for op in operators(kernel, channels)]
    served = [op for op in products if "depthwise" not in kernel or chosen.refuses(op) is None]
    assert served
    wanted = [Wanted(f"k{i}", chosen.build(op).function) for i, op in enumerate(served)]
    assert compile_objects(wanted, host_target(chosen.needs)).code
