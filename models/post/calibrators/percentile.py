"""Percentile: a stated share of the values keeps its size, the rest is clipped."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from subbyte.models.options import Within
from subbyte.models.post.calibrators.register import calibrator

Percent = Annotated[float, Within(0, 100, "(]")]


@calibrator(
    "percentile",
    source="Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5 (99.9 to 99.9999)",
)
def percentile(x: Tensor, low: float, high: float, percent: Percent = 99.99) -> Tensor:
    """the largest code is at this percentile of |x|

    The percentile is interpolated linearly between values. Where more values than that are zero, it is that of the
    others.
    """
    size = x.abs()
    found = torch.quantile(size, percent / 100, dim=1)
    for row in (found == 0).nonzero().flatten().tolist():
        others = size[row][size[row] > 0]
        if others.numel():
            found[row] = torch.quantile(others, percent / 100)
    return found / high
