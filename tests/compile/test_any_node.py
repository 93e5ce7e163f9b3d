"""Graphs of one drawn operator: compiled right, or refused by one of our errors. `make fuzz` draws many more a day."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest
from any_node import FAULTS, Case, draw, equal, run

COUNT = 30  # about a second each


def test_any_operator_is_right_or_refused() -> None:
    cases = [case for case in (draw(0, index) for index in range(COUNT)) if case is not None]
    answers = run(cases)
    assert [(case.label, *answer) for case, answer in zip(cases, answers, strict=True) if answer[0] in FAULTS] == []
    assert [word for word, _ in answers].count("right") > COUNT / 4


def test_a_case_is_always_the_same() -> None:
    first, second = draw(3, 5), draw(3, 5)
    assert first is not None
    assert second is not None
    assert first.model == second.model
    assert first.label == second.label
    assert all(np.array_equal(array, second.inputs[name]) for name, array in first.inputs.items())


def test_what_is_wrong_is_found() -> None:
    one = np.float32([1.0, np.nan, np.inf])
    assert equal(one, one.copy(), half=False)
    assert not equal(one, np.float32([1.001, np.nan, np.inf]), half=False)
    assert not equal(one, np.float32([1.0, 0.0, np.inf]), half=False)
    assert not equal(np.int8([1]), np.int8([2]), half=True)
    assert not equal(np.int8([1]), np.uint8([1]), half=False)
    assert not equal(one, one[:2], half=False)


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


@pytest.mark.filterwarnings("ignore")
def test_a_case_that_ends_its_process_is_a_crash_and_the_next_one_runs() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    good = Case(model, {"x": np.float32([1, -2])}, "Neg")
    assert run([Deadly(), good]) == [("crash", ""), ("right", "")]  # type: ignore[list-item]
