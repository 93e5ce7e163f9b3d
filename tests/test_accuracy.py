"""Accuracy is scored on the first output, and refused where that cannot hold logits for the labels."""

import numpy as np
import pytest

from subbyte.errors import UsageError
from subbyte.judge.accuracy import refuse_unscorable, scored_on

LABELS = np.array([0, 9, 3])


@pytest.mark.parametrize("shape", [(1, 10), (1, 12), (0, 10), (0, 0)])
def test_logits_for_all_classes_can_be_scored(shape: tuple[int, ...]) -> None:
    refuse_unscorable("y", shape, LABELS, "digits")


@pytest.mark.parametrize("shape", [(), (10,), (1, 4), (1, 9), (1, 10, 4)])
def test_anything_else_is_refused_with_what_to_do(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"'y' of shape .* holds no logits \[N, 10\] .* data set 'digits': return the"):
        refuse_unscorable("y", shape, LABELS, "digits")


def test_one_output_needs_no_mention() -> None:
    assert scored_on(["y"]) == ""
    assert scored_on(["y", "z"]) == "'y', the first of 2 outputs"
