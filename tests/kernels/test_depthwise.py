"""Depthwise convolutions of codes with low-bit weights: zero differing bits."""

from __future__ import annotations

from typing import Any

import pytest
from agreement import Generator, row, rows_here
from products import SIGNED, differences, every_store, product, weight

from subbyte.formats import LowBitTensor
from subbyte.tvm_kernels.operators import (
    Codes,
    Conv2d,
    Product,
)

ROWS = rows_here(Product[Codes, LowBitTensor], "depthwise")
BOTH: list[Any] = [(name, "llvm") for name in ROWS] + [("depthwise-portable", "c")]


def shape(channels: int, **more: Any) -> Conv2d:
    return Conv2d(2, 7, 6, channels, channels, (3, 3), padding=(1, 1, 1, 1), groups=channels, **more)


@pytest.mark.parametrize("by", ["llvm", "c"])
@pytest.mark.parametrize("fmt", ["binary", "ternary", "int3", "int8", "uint8", "pow2_5"])
def test_every_format(fmt: str, by: Generator) -> None:
    geometry = shape(13)
    assert differences("depthwise-portable", geometry, SIGNED, fmt, by=by) == 0


@pytest.mark.parametrize(("kernel", "by"), BOTH)
@pytest.mark.parametrize("geometry", [shape(2), shape(70, stride=(2, 1), dilation=(1, 2))], ids=["2", "70"])
def test_shapes_and_forms(geometry: Conv2d, kernel: str, by: Generator) -> None:
    assert differences(kernel, geometry, SIGNED, "int4", every_store(geometry.channels), by=by) == 0


def test_what_is_not_depthwise_is_refused() -> None:
    refuses = row(Product[Codes, LowBitTensor], "depthwise-portable").refuses
    twice = Conv2d(1, 5, 5, 4, 8, (3, 3), groups=4)
    assert "not a depthwise" in str(refuses(product(twice, SIGNED, "int4")))
    geometry = shape(4)
    by_group = weight(geometry, "int4", group=4)
    assert "by group" in str(refuses(product(geometry, SIGNED, by_group)))
