"""Codes of a tensor: packed or one a byte, each made from the other once, and moved as NumPy moves an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import FormatError
from subbyte.formats import (
    Format,
    LowBitTensor,
    Payload,
    PerChannel,
    PerGroup,
    PerTensor,
    all_formats,
    get,
    pack,
    payload,
)

FORMATS = list(all_formats())
INTEGERS = [fmt for fmt in FORMATS if fmt.levels.integer]
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
Tensors = tuple[LowBitTensor, np.ndarray[Any, np.dtype[Any]]]


def packed(fmt: Format, levels: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The packed rows of levels of any shape."""
    return pack(fmt.encode(levels).reshape(levels.shape[0], -1), fmt.code_bits)


@st.composite
def tensors(draw: st.DrawFn, among: Sequence[Format] = FORMATS) -> Tensors:
    """A tensor with one scale a row, from packed rows or from levels, and its levels."""
    fmt, shape = draw(st.sampled_from(among)), draw(SHAPES)
    levels = np.random.default_rng(draw(st.integers(0, 99))).choice(fmt.levels.values, shape)
    levels = levels.astype(np.int64) if fmt.levels.integer else levels
    scale = np.arange(1, 1 + shape[0], dtype=np.float32)
    if draw(st.booleans()):
        return LowBitTensor.from_packed(fmt, shape, packed(fmt, levels), scale, PerChannel()), levels
    return LowBitTensor.from_levels(fmt, levels, scale, PerChannel()), levels


def assert_holds(tensor: LowBitTensor, levels: Any) -> None:
    """Codes, packed rows and levels are those of a tensor made of these levels."""
    assert tensor.shape == levels.shape
    np.testing.assert_array_equal(tensor.packed, packed(tensor.format, levels))
    np.testing.assert_array_equal(tensor.payload.codes, tensor.format.encode(levels))
    np.testing.assert_array_equal(tensor.levels(), levels)


@given(tensors(), st.data())
def test_axes_move_as_those_of_an_array(made: Tensors, data: st.DataObject) -> None:
    tensor, levels = made
    axes = (0, *data.draw(st.permutations(range(1, levels.ndim))))
    moved = tensor.transpose(axes)
    assert_holds(moved, levels.transpose(axes))
    np.testing.assert_array_equal(moved.dequantize(), tensor.dequantize().transpose(axes))
    assert_holds(tensor, levels)
    every = data.draw(st.permutations(range(levels.ndim)))
    assert_holds(tensor.without_scale().transpose(every), levels.transpose(every))


@given(tensors(), st.data())
def test_elements_keep_their_order_in_another_shape(made: Tensors, data: st.DataObject) -> None:
    tensor, levels = made
    rows, depth = tensor.matrix_shape
    for shape in ((rows, depth), (rows, 1, depth, 1)):
        assert_holds(tensor.reshape(shape), levels.reshape(shape))
    assert_holds(tensor.without_scale().reshape((depth, rows)), levels.reshape(depth, rows))
    order = np.array(data.draw(st.permutations(range(depth))))
    np.testing.assert_array_equal(tensor.payload.take(order).levels, levels.reshape(rows, depth)[:, order])


@given(tensors(INTEGERS), st.integers(1, 40), st.booleans())
def test_sums_and_limits_are_those_of_the_integers(made: Tensors, size: int, points: bool) -> None:
    tensor, levels = made
    if points:
        zero = np.arange(levels.shape[0]) - 2
        tensor = LowBitTensor.from_levels(tensor.format, levels, tensor.scale, PerChannel(), zero)
        levels = levels - zero.reshape(-1, *[1] * (levels.ndim - 1))
    np.testing.assert_array_equal(tensor.integers(), levels)
    np.testing.assert_array_equal(tensor.compact_integers, levels)
    assert tensor.limits == (levels.min(), levels.max())
    assert tensor.largest == np.abs(levels).max()
    rows = levels.reshape(tensor.matrix_shape)
    wanted = np.stack([rows[:, k : k + size].sum(axis=1) for k in range(0, tensor.depth, size)], axis=1)
    np.testing.assert_array_equal(tensor.sums(size), wanted)


def test_each_form_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, levels = get("int3"), np.arange(-4, 4).reshape(2, 4)
    done: list[str] = []

    def record(owner: object, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: done.append(name) or original(*given))

    rows = packed(fmt, levels)
    record(Format, "decode")
    record(Format, "encode")
    record(payload, "pack")
    record(payload, "unpack")
    tensor = LowBitTensor.from_packed(fmt, (2, 4), rows, 1.0, PerTensor())
    assert (tensor.nbytes, tensor.packed is rows, done) == (2 * 2 + 4, True, [])  # rows of 12 bits
    for _ in range(2):
        tensor.levels(), tensor.integers(), tensor.dequantize(), tensor.sums(3), tensor.limits, tensor.check()
        tensor.reshape((2, 2, 2)).transpose((0, 2, 1)).levels()
    assert done == ["unpack", "decode"]
    made = LowBitTensor.from_levels(fmt, levels, 1.0, PerTensor())
    for _ in range(2):
        np.testing.assert_array_equal(made.packed, rows)
        made.levels()
    assert done == ["unpack", "decode", "encode", "pack"]


def test_impossible_codes_are_found_when_they_are_read() -> None:
    holes = LowBitTensor.from_packed(get("ternary"), (1, 4), np.array([[0b11]], np.uint8), 1.0, PerTensor())
    with pytest.raises(FormatError, match="code 3 has no level"):
        holes.check()
    behind = LowBitTensor.from_packed(get("int2"), (1, 3), np.array([[0b11000000]], np.uint8), 1.0, PerTensor())
    with pytest.raises(FormatError, match="padding bits"):
        behind.check()


@pytest.mark.parametrize(
    ("granularity", "axes"),
    [
        (PerChannel(), (1, 0, 2)),
        (PerChannel(1), (0, 2, 1)),
        (PerGroup(2), (0, 2, 1)),
    ],
)
def test_scales_that_would_not_follow_are_refused(granularity: Any, axes: tuple[int, ...]) -> None:
    levels = np.zeros((2, 2, 2), np.int64)
    tensor = LowBitTensor.from_levels(get("int4"), levels, np.ones(granularity.scale_shape((2, 4))), granularity)
    assert tensor.transpose((0, 1, 2)).shape == (2, 2, 2)
    with pytest.raises(FormatError, match="cannot be transposed"):
        tensor.transpose(axes)
    with pytest.raises(FormatError, match="scale has shape"):
        tensor.reshape((8, 1))


def test_moves_that_lose_elements_and_empty_payloads_are_refused() -> None:
    tensor = LowBitTensor.from_levels(get("int4"), np.zeros((2, 3), np.int64), 1.0, PerTensor())
    for shape in ((2, 4), (-1, 3), ()):
        with pytest.raises(FormatError, match="6 elements"):
            tensor.reshape(shape)
    for axes in ((0,), (0, 0), (0, 1, 2), (1, -2)):
        with pytest.raises(FormatError, match="not a permutation of the axes"):
            tensor.transpose(axes)
    with pytest.raises(FormatError, match="payload is missing"):
        Payload(get("int4"), (2, 3))
    with pytest.raises(FormatError, match="at least one axis"):
        Payload(get("int4"), (), packed=np.zeros((1, 1), np.uint8))
