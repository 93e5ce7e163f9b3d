"""`check`'s own sums: a NaN counts as a difference, never as none."""

import numpy as np

from subbyte.judge.check import NEAR_A_TIE, _Difference


def test_integers_that_differ_where_the_float_is_nan_are_no_rounding_tie() -> None:
    for scaled in ([np.nan, 0.5], [0.5, np.nan], [np.inf, 0.5]):
        difference = _Difference()
        with np.errstate(invalid="ignore"):
            difference.add(np.ones(2), np.zeros(2), np.array(scaled))
        assert not difference.worst_distance <= NEAR_A_TIE
