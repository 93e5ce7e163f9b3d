"""Which samples are held out, where a data set has no test part of its own."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from subbyte.errors import DataError

TEST_SHARE = 0.2  # of the samples, unless an option says another


def held_out(name: str, count: int, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The samples to train on and those to test on, of `count`: a fixed draw of round(`share` * `count`), both sorted.

    Raises DataError where one of the two would be empty.
    """
    tests = round(share * count)
    if not 0 < tests < count:
        raise DataError(
            f"data set '{name}': {count} samples with a share of {share:g} held out leave {count - tests} to train on "
            f"and {tests} to test on; give more samples, or another test_share."
        )
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[tests:]), np.sort(order[:tests])


def is_held_out(key: str, share: float) -> bool:
    """Whether what has this name is held out: its SHA-256 as a fraction of 1 is below `share`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < share * 2**64
