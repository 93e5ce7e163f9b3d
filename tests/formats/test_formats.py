"""Formats: every level has one code, codes survive, impossible codes are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subbyte.errors import FormatError, UnknownNameError
from subbyte.formats import Format, LowBitTensor, PerChannel, PerGroup, PerTensor, all_formats, get, register

FORMATS = list(all_formats())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_decode_inverts_encode(fmt: Format) -> None:
    np.testing.assert_array_equal(fmt.decode(fmt.encode(fmt.levels)), fmt.levels)


def test_levels_are_those_of_the_literature() -> None:
    assert get("binary").levels.tolist() == [-1, 1]
    assert get("ternary").levels.tolist() == [-1, 0, 1]
    assert get("int4").levels.tolist() == list(range(-8, 8))
    assert get("uint3").levels.tolist() == list(range(8))
    assert get("pow2_4").levels.tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    assert get("pow2_3n").levels.tolist() == [-8, -4, -2, -1, 1, 2, 4, 8]


def test_int_codes_are_twos_complement() -> None:
    assert get("int8").encode(np.array([-1, -128, 127])).tolist() == [0xFF, 0x80, 0x7F]


@pytest.mark.parametrize("level", [0.5, 1.0, np.float32(1), True, "1"])
def test_a_level_that_is_no_integer_is_refused(level: object) -> None:
    with pytest.raises(FormatError, match="expected an integer"):
        Format("real", 1, (-1, level))  # type: ignore[arg-type]
    assert Format("numpy", 1, (-1, np.int8(1))).levels.tolist() == [-1, 1]  # type: ignore[arg-type]


def test_a_level_outside_the_format_is_refused() -> None:
    with pytest.raises(FormatError, match="no level 2"):
        get("ternary").encode(np.array([0, 2]))
    with pytest.raises(FormatError, match="no level 3"):
        get("pow2_4").encode(np.array([3]))


def test_an_impossible_code_is_refused() -> None:
    with pytest.raises(FormatError, match="code 3 stands for no level"):
        get("ternary").decode(np.array([1, 3], np.uint8))
    with pytest.raises(FormatError, match="does not fit"):
        get("int2").decode(np.array([4], np.uint8))


def test_the_registry_suggests_and_refuses_a_second_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ternary'"):
        get("ternery")
    with pytest.raises(FormatError, match="twice"):
        register(get("binary"))


@given(st.data())
def test_a_tensor_survives_packing_for_every_format_shape_and_granularity(data: st.DataObject) -> None:
    fmt = data.draw(st.sampled_from(FORMATS))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    seed = data.draw(st.integers(0, 1000))
    granularity = data.draw(
        st.one_of(st.just(PerTensor()), st.just(PerChannel(0)), st.builds(PerGroup, st.integers(1, 9)))
    )
    rng = np.random.default_rng(seed)
    levels = rng.choice(fmt.levels, shape)
    matrix = (shape[0], int(np.prod(shape[1:])))
    scale = rng.random(granularity.scale_shape(matrix)).astype(np.float32)
    tensor = LowBitTensor.from_levels(fmt, levels, scale, granularity)
    np.testing.assert_array_equal(tensor.levels(), levels)
    expected = levels.reshape(matrix).astype(np.float32) * granularity.expand(scale, matrix)
    np.testing.assert_array_equal(tensor.dequantize(), expected.reshape(shape))
    stored = shape[0] * -(-matrix[1] * fmt.code_bits // 8) + 4 * scale.size
    assert tensor.nbytes == stored
    assert tensor.bits_per_weight == pytest.approx(8 * stored / levels.size)


def test_groups_that_do_not_divide_leave_a_short_last_group() -> None:
    granularity = PerGroup(4)
    assert granularity.scale_shape((2, 10)) == (2, 3)
    scale = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    expanded = granularity.expand(scale, (2, 10))
    assert expanded[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_affine_values_subtract_the_zero_point() -> None:
    tensor = LowBitTensor.from_levels(get("uint4"), np.array([[0, 15], [3, 4]]), [0.5, 2.0], PerChannel(0), [8, 3])
    assert tensor.dequantize().tolist() == [[-4.0, 3.5], [0.0, 2.0]]


def test_a_ternary_layer_takes_two_bits_a_weight_and_its_scales() -> None:
    tensor = LowBitTensor.from_levels(get("ternary"), np.zeros((64, 64, 3, 3), np.int32), np.ones(64), PerChannel(0))
    assert tensor.bits_per_weight == pytest.approx(2 + 32 / 576)


def test_payloads_and_scales_of_the_wrong_shape_are_refused() -> None:
    good = LowBitTensor.from_levels(get("int4"), np.zeros((2, 3), np.int32), 1.0, PerTensor())
    with pytest.raises(FormatError, match="payload"):
        LowBitTensor.from_packed(good.format, (2, 5), good.packed, good.scale, good.granularity)
    with pytest.raises(FormatError, match="scale has shape"):
        LowBitTensor.from_packed(good.format, good.shape, good.packed, np.ones(3), PerChannel(0))
