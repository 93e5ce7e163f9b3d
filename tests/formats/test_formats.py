"""Formats: every level has one code, codes survive, impossible codes are refused."""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import PACKAGES

from subbyte import formats
from subbyte.errors import FormatError, RegistrationError, UnknownNameError
from subbyte.formats import (
    Format,
    IntegerLine,
    IntegerTable,
    LowBitTensor,
    PerChannel,
    PerGroup,
    PerTensor,
    RealTable,
    all_formats,
    get,
    register,
)
from subbyte.formats.energy import ADD, OPERATIONS_PJ, PerMac

FORMATS = list(all_formats())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_decode_inverts_encode(fmt: Format) -> None:
    np.testing.assert_array_equal(fmt.decode(fmt.encode(fmt.levels.values)), fmt.levels.values)


def test_levels_are_those_of_the_literature() -> None:
    assert get("binary").levels.values.tolist() == [-1, 1]
    assert get("ternary").levels.values.tolist() == [-1, 0, 1]
    assert get("int4").levels.values.tolist() == list(range(-8, 8))
    assert get("uint3").levels.values.tolist() == list(range(8))
    assert get("pow2_4").levels.values.tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]
    assert get("pow2_3n").levels.values.tolist() == [-8, -4, -2, -1, 1, 2, 4, 8]


def test_int_codes_are_twos_complement() -> None:
    assert get("int8").encode(np.array([-1, -128, 127])).tolist() == [0xFF, 0x80, 0x7F]


@pytest.mark.parametrize("level", [0.5, 1.0, np.float32(1), True, "1"])
def test_a_level_that_is_no_integer_is_refused(level: object) -> None:
    with pytest.raises(FormatError, match="expected an integer"):
        IntegerTable((-1, level))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="expected an integer"):
        IntegerLine(-1, level)  # type: ignore[arg-type]
    assert IntegerTable((-1, np.int8(1))).values.tolist() == [-1, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [float("nan"), float("inf"), 1e39, "1"])
def test_a_level_that_is_no_number_is_refused(level: Any) -> None:
    with pytest.raises(FormatError, match="expected a finite number"):
        RealTable((-1.0, level))


def test_bits_codes_and_dtype_follow_from_the_levels() -> None:
    line = IntegerLine(-3, 3)
    assert (line.table, line.code_bits, line.by_code.dtype) == ((0, 1, 2, 3, None, -3, -2, -1), 3, np.int8)
    assert (line.twos_complement, line.line) == (True, None)
    assert IntegerLine(5, 12).table == (8, 9, 10, 11, 12, 5, 6, 7)
    table = IntegerTable((-300, 0, 300))
    assert (table.table, table.code_bits, table.by_code.dtype) == ((-300, 0, 300, None), 2, np.int16)
    assert (table.twos_complement, table.line) == (False, (-300, 300))
    assert (IntegerTable((7,)).code_bits, get("uint8").dtype, get("int8").dtype) == (1, np.uint8, np.int8)
    real = RealTable((0.1, -0.5, 2.0))
    assert (real.code_bits, real.by_code.dtype, real.largest) == (2, np.float32, 2.0)
    assert real.values.tolist() == np.float32([-0.5, 0.1, 2.0]).tolist()
    assert (line.integer, table.integer, real.integer) == (True, True, False)


def test_nf4_has_the_published_levels() -> None:
    """Appendix E: quantiles of a normal distribution, 8 of each sign with 0 shared, scaled to 1."""
    quantile, last = NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(last, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(last, 0.5, 8)[:-1]]
    wanted = np.sort([*above, 0, *below]) / max(above)
    np.testing.assert_allclose(get("nf4").levels.by_code, wanted, atol=2e-7)
    assert get("nf4").levels.by_code[[0, 1, 7, 15]].tolist() == np.float32([-1, -0.6961928009986877, 0, 1]).tolist()
    assert get("nf4").encode([0.5626170039176941, -1, 0]).tolist() == [13, 0, 7]
    with pytest.raises(FormatError, match=r"nf4 has no level 0\.5;"):
        get("nf4").encode([0.5])


def test_a_weight_in_nf4_is_within_half_a_step_of_the_weight() -> None:
    """As QLoRA quantizes: the largest magnitude of a group is its scale, each element the nearest level times it."""
    w = np.random.default_rng(2).standard_normal((6, 200)).astype(np.float32)
    granularity = PerGroup(64)
    groups = [np.abs(w[:, first : first + 64]).max(axis=1) for first in range(0, 200, 64)]
    scale = np.stack(groups, axis=1)
    expanded = granularity.expand(scale, w.shape)
    fmt = get("nf4")
    tensor = LowBitTensor.from_levels(fmt, fmt.levels.nearest(w / expanded), scale, granularity)
    assert (tensor.packed.nbytes, tensor.levels().dtype) == (6 * 100, np.float32)
    widest = np.diff(fmt.levels.values).max() / 2
    assert (np.abs(tensor.dequantize() - w) <= widest * expanded + 1e-6).all()
    again = LowBitTensor.from_packed(fmt, w.shape, tensor.packed, scale, granularity)
    np.testing.assert_array_equal(again.dequantize(), tensor.dequantize())
    with pytest.raises(FormatError, match="nf4 has real levels, which have no zero point"):
        LowBitTensor.from_levels(fmt, tensor.levels(), scale, granularity, np.zeros(scale.shape))


def test_a_format_is_one_file() -> None:
    """What a codebook takes: no module but its own knows its name."""
    code = Path(formats.__file__).parents[1]
    files = [file for name in PACKAGES for file in (code / name).rglob("*.py")]
    assert [file.name for file in files if "nf4" in file.read_text().lower()] == ["nf4.py"]


def test_nearest_levels() -> None:
    found = RealTable((0.0, 1.0, -2.0)).nearest([-9, -1.1, -1.0, -0.9, 0.5, 0.6, 7])
    assert found.tolist() == [-2, -2, -2, 0, 0, 1, 1]
    assert get("ternary").levels.nearest([[-0.6, 0.2], [0.51, 3]]).tolist() == [[-1, 0], [1, 1]]


@pytest.mark.parametrize("wrong", [(5, 4), (0, 256), (-(1 << 17), -(1 << 17))])
def test_a_line_of_too_many_or_too_large_integers_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(FormatError, match=r"expected 1 to 256 integers|at most 65536 in magnitude"):
        IntegerLine(*wrong)


@pytest.mark.parametrize("levels", [(1, 1), (), (None, None), tuple(range(257))])
def test_levels_without_one_code_each_are_refused(levels: Any) -> None:
    for kind in (IntegerTable, RealTable):
        with pytest.raises(FormatError, match=r"exactly one code|at most 256"):
            kind(levels)


PARTS: dict[str, Any] = {"name": "whole", "levels": IntegerLine(0, 1), "summary": "s", "energy": ADD}


@pytest.mark.parametrize("part", ["levels", "summary", "energy"])
def test_a_format_that_lacks_a_part_is_refused_when_it_registers(part: str) -> None:
    with pytest.raises(RegistrationError, match=f"format 'whole' lacks its '{part}'"):
        register(Format(**{name: value for name, value in PARTS.items() if name != part}))
    with pytest.raises(RegistrationError, match=f"its '{part}' is 5, expected"):
        register(Format(**{**PARTS, part: 5}))
    with pytest.raises(RegistrationError, match="expects a Format, got 'int4'"):
        register("int4")  # type: ignore[arg-type]
    assert "whole" not in [fmt.name for fmt in all_formats()]


@pytest.mark.parametrize("name", ["Whole", "1x", "a b", ""])
def test_a_name_that_makes_no_function_name_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match=r"lower-case|lacks its 'name'"):
        register(Format(**{**PARTS, "name": name}))


def test_energy_in_operations_without_a_price_is_refused() -> None:
    with pytest.raises(FormatError, match="operation 'int5 multiply'"):
        PerMac.of({"int5 multiply": 1})
    with pytest.raises(FormatError, match="without operations"):
        PerMac.of({})


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (PerMac.of, [1], r"of \[1\]: expected a mapping of operations to counts"),
        (PerMac, [1], r"of \[1\]: expected pairs of operation and count"),
        (PerMac, (1,), r"of \(1,\): expected pairs"),
        (PerMac, {"int32 add": 1}, "expected pairs of operation and count; PerMac.of takes a mapping"),
        (PerMac, (("int32 add", "1"),), "'1' of operation 'int32 add'"),
    ],
)
def test_energy_that_is_no_counts_of_operations_is_refused(make: Any, given: Any, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        make(given)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_every_registered_format_is_whole(fmt: Format) -> None:
    assert fmt.summary
    assert 1 << fmt.code_bits == len(fmt.table)
    assert len(fmt.levels.values) <= len(fmt.table) < 4 * len(fmt.levels.values)
    assert all(operation in OPERATIONS_PJ for operation, _ in fmt.energy.operations)
    assert any("float32" in operation for operation, _ in fmt.energy.operations) != fmt.levels.integer


def test_a_level_outside_the_format_is_refused() -> None:
    with pytest.raises(FormatError, match="no level 2"):
        get("ternary").encode(np.array([0, 2]))
    with pytest.raises(FormatError, match="no level 3"):
        get("pow2_4").encode(np.array([3]))


def test_an_impossible_code_is_refused() -> None:
    with pytest.raises(FormatError, match="code 3 has no level"):
        get("ternary").decode(np.array([1, 3], np.uint8))
    with pytest.raises(FormatError, match="does not fit"):
        get("int2").decode(np.array([4], np.uint8))


def test_the_registry_suggests_and_refuses_a_second_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ternary'"):
        get("ternery")
    with pytest.raises(RegistrationError, match="format 'binary' is registered twice"):
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
    levels = rng.choice(fmt.levels.values, shape)
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
