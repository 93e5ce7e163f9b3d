"""Entropy: the threshold that loses the least information, by Kullback-Leibler divergence between histograms."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subbyte.models.options import Within
from subbyte.models.post.calibrators.register import calibrator

Array = npt.NDArray[np.float64]
Bins = Annotated[int, Within(2, closed="[)")]
CROWDED = 0.999  # of the values, in the first bin: nothing is seen of them
EMPTY = 1e-4  # values that an empty last bin of Q counts as


def divergence(kept: npt.NDArray[np.int64], clipped: int, levels: int) -> float:
    """KL(P || Q) in nats, where `kept` is the histogram below a threshold and `clipped` counts what is beyond it."""
    if not kept.any():
        return np.inf
    level = np.arange(len(kept)) * levels // len(kept)
    filled = kept > 0
    counts, spread = np.bincount(level, kept, levels), np.bincount(level, filled, levels)
    q = np.where(filled, counts[level] / np.maximum(spread[level], 1), 0.0)
    p = kept.astype(np.float64)
    p[-1] += clipped
    q[-1] = q[-1] or EMPTY
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def _threshold(sizes: Array, levels: int, bins: int) -> float:
    """The threshold of least divergence for |x|."""
    sizes = sizes[sizes > 0]
    largest, bins = float(sizes.max(initial=0.0)), max(bins, 2 * levels)
    while largest > 0:
        histogram, _ = np.histogram(sizes, bins, (0.0, largest))
        beyond = sizes.size - int(histogram.sum())
        if histogram[0] > CROWDED * sizes.size:
            largest *= levels / bins
            continue
        if not histogram.any():
            break
        losses = [
            divergence(histogram[:end], beyond + int(histogram[end:].sum()), levels) for end in range(levels, bins + 1)
        ]
        best = levels + int(np.argmin(losses))
        largest *= best / bins
        if best > levels:
            break
    return largest


@calibrator("entropy", source="Migacz, 8-bit Inference with TensorRT, 2017", rows=False)
def entropy(x: Tensor, low: float, high: float, bins: Bins = 2048) -> Tensor:
    """the threshold at which the histogram of |x| loses the least information (KL divergence)

    For each threshold of the histogram, P is the histogram below it with all that is beyond in its last bin; Q is the
    histogram below it, merged into high + 1 levels and spread evenly over the bins of each level that are not empty.
    The largest code is at the threshold of least KL(P || Q). Three things are not in the source. Zeros are left out:
    they have a code of their own at any step. An empty last bin of Q counts as 1e-4 values, as in Apache MXNet, else
    KL were infinite at every threshold that no value is near. And an outlier far from all others makes the bins too
    wide: where the smallest threshold wins, which is high + 1 bins, or 99.9% of the values are in the first bin, the
    histogram is taken again of what is below that threshold.
    """
    found = [_threshold(np.abs(row), round(high) + 1, bins) for row in x.cpu().double().numpy()]
    return torch.tensor(found, dtype=x.dtype, device=x.device) / high
